// containerd-shim-unshare-v1 is a shim of the tests' own: what Bulkhead has not been written for. It stands on
// containerd's public shim library, walls containers off by namespaces alone, without runc or any other runtime, and
// offers the sandbox API. No limits, no capabilities: nothing to run a tenant in.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const name = "io.containerd.unshare.v1"

func init() {
	registry.Register(&plugin.Registration{
		Type:     plugins.TTRPCPlugin,
		ID:       "task",
		Requires: []plugin.Type{plugins.EventPlugin, plugins.InternalPlugin},
		InitFn: func(ic *plugin.InitContext) (any, error) {
			end, err := ic.GetByID(plugins.InternalPlugin, "shutdown")
			if err != nil {
				return nil, err
			}
			return newService(end.(shutdown.Service)), nil
		},
	})
}

func main() {
	if len(os.Args) == 2 && os.Args[1] == "init" {
		fmt.Fprintln(os.Stderr, enter())
		os.Exit(127)
	}
	shim.RunShim(context.Background(), manager{}, func(c *shim.Config) { c.NoReaper = true })
}

type manager struct{}

func (manager) Name() string { return name }

// Start leaves a server behind, listening on the socket that it inherits as descriptor 3.
func (manager) Start(ctx context.Context, params *bootapi.BootstrapParams) (*bootapi.BootstrapResult, error) {
	if params.GetSocketDir() == "" {
		return nil, errors.New("socket_dir is missing")
	}
	address, err := shim.CreateSocketAddress(ctx, params.GetSocketDir(), params.GetContainerdGrpcAddress(), params.GetInstanceID(), false)
	if err != nil {
		return nil, err
	}
	socket, err := shim.NewSocket(address)
	if err != nil {
		return nil, err
	}
	file, err := socket.File()
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	server := exec.Command(self, "-namespace", params.GetNamespace(), "-id", params.GetInstanceID(), "-address", params.GetContainerdGrpcAddress())
	server.ExtraFiles = []*os.File{file}
	server.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := server.Start(); err != nil {
		return nil, err
	}
	return &bootapi.BootstrapResult{Version: 3, Protocol: "ttrpc", Address: address}, nil
}

// Stop kills what a dead shim left of a container.
func (manager) Stop(_ context.Context, id string) (shim.StopStatus, error) {
	cwd, err := os.Getwd()
	if err != nil {
		return shim.StopStatus{}, err
	}
	var pid int
	if text, err := os.ReadFile(filepath.Join(filepath.Dir(cwd), id, "init.pid")); err == nil {
		if _, err := fmt.Sscan(string(text), &pid); err == nil {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	return shim.StopStatus{Pid: pid, ExitStatus: 137}, nil
}

func (manager) Info(context.Context, io.Reader) (*types.RuntimeInfo, error) {
	return &types.RuntimeInfo{Name: name, Version: &types.RuntimeVersion{Version: "1"}}, nil
}

// enter makes a container of the process: the first one of new namespaces becomes the program of the spec.
func enter() error {
	var spec specs.Spec
	if err := json.NewDecoder(os.NewFile(3, "spec")).Decode(&spec); err != nil {
		return err
	}
	root := spec.Root.Path
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := syscall.Mount(root, root, "", syscall.MS_BIND|syscall.MS_REC, ""); err != nil {
		return err
	}
	for _, mount := range spec.Mounts {
		target := filepath.Join(root, mount.Destination)
		flags, kind := uintptr(0), mount.Type
		if kind == "bind" {
			flags = syscall.MS_BIND | syscall.MS_REC
		}
		info, err := os.Stat(mount.Source)
		if kind == "bind" && err == nil && !info.IsDir() {
			_ = os.MkdirAll(filepath.Dir(target), 0o755)
			if file, err := os.OpenFile(target, os.O_CREATE, 0o644); err == nil {
				file.Close()
			}
		} else {
			_ = os.MkdirAll(target, 0o755)
		}
		// What this kernel does not have is left out: cgroups, message queues.
		_ = syscall.Mount(mount.Source, target, kind, flags, "")
	}
	for path, minor := range map[string]int{"null": 3, "zero": 5, "random": 8, "urandom": 9} {
		_ = syscall.Mknod(filepath.Join(root, "dev", path), syscall.S_IFCHR|0o666, 1<<8|minor)
	}
	if spec.Hostname != "" {
		_ = syscall.Sethostname([]byte(spec.Hostname))
	}
	if err := syscall.Chroot(root); err != nil {
		return err
	}
	if err := os.Chdir(spec.Process.Cwd); err != nil {
		return err
	}
	user := spec.Process.User
	if err := errors.Join(syscall.Setgid(int(user.GID)), syscall.Setuid(int(user.UID))); err != nil {
		return err
	}
	os.Clearenv()
	for _, each := range spec.Process.Env {
		for at := range each {
			if each[at] == '=' {
				os.Setenv(each[:at], each[at+1:])
				break
			}
		}
	}
	program, err := exec.LookPath(spec.Process.Args[0])
	if err != nil {
		return err
	}
	return syscall.Exec(program, spec.Process.Args, spec.Process.Env)
}
