package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	sandbox "github.com/containerd/containerd/api/runtime/sandbox/v1"
	task "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// process is a container's first process, or one that was executed in it.
type process struct {
	args   *specs.Process
	spec   *specs.Spec
	bundle string
	inner  *process
	files  []*os.File
	stdin  *os.File
	cmd    *exec.Cmd
	status tasktypes.Status
	exit   uint32
	at     time.Time
	done   chan struct{}
}

type service struct {
	mu        sync.Mutex
	processes map[string]*process
	end       shutdown.Service
	netns     string
	created   time.Time
	ready     bool
	stopped   chan struct{}
}

func newService(end shutdown.Service) *service {
	return &service{processes: map[string]*process{}, end: end, stopped: make(chan struct{})}
}

func (s *service) RegisterTTRPC(server *ttrpc.Server) error {
	task.RegisterTTRPCTaskService(server, s)
	sandbox.RegisterTTRPCSandboxService(server, s)
	return nil
}

func key(id, execID string) string { return id + "/" + execID }

func (s *service) find(id, execID string) (*process, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if found, ok := s.processes[key(id, execID)]; ok {
		return found, nil
	}
	return nil, errgrpc.ToGRPCf(errdefs.ErrNotFound, "no process %q of %q", execID, id)
}

// open takes the ends of the pipes that were made for the process.
func (p *process) open(stdin, stdout, stderr string) error {
	p.files = make([]*os.File, 3)
	if stdin != "" {
		reader, err := os.OpenFile(stdin, syscall.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		// Blocking from here on, for the program.
		if err := syscall.SetNonblock(int(reader.Fd()), false); err != nil {
			return err
		}
		p.files[0] = reader
		if p.stdin, err = os.OpenFile(stdin, syscall.O_WRONLY|syscall.O_NONBLOCK, 0); err != nil {
			return err
		}
	}
	for at, path := range []string{stdout, stderr} {
		if path == "" {
			continue
		}
		file, err := os.OpenFile(path, syscall.O_RDWR, 0)
		if err != nil {
			return err
		}
		p.files[at+1] = file
	}
	return nil
}

func (p *process) close() {
	for _, file := range p.files {
		if file != nil {
			file.Close()
		}
	}
	if p.stdin != nil {
		p.stdin.Close()
	}
}

func (s *service) Create(_ context.Context, r *task.CreateTaskRequest) (*task.CreateTaskResponse, error) {
	if r.Terminal {
		return nil, errgrpc.ToGRPCf(errdefs.ErrNotImplemented, "terminals")
	}
	text, err := os.ReadFile(filepath.Join(r.Bundle, "config.json"))
	if err != nil {
		return nil, err
	}
	var spec specs.Spec
	if err := json.Unmarshal(text, &spec); err != nil {
		return nil, err
	}
	p := &process{args: spec.Process, spec: &spec, bundle: r.Bundle, status: tasktypes.Status_CREATED, done: make(chan struct{})}
	if err := p.open(r.Stdin, r.Stdout, r.Stderr); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.processes[key(r.ID, "")] = p
	return &task.CreateTaskResponse{Pid: uint32(os.Getpid())}, nil
}

func (s *service) Exec(_ context.Context, r *task.ExecProcessRequest) (*emptypb.Empty, error) {
	inner, err := s.find(r.ID, "")
	if err != nil {
		return nil, err
	}
	var args specs.Process
	if err := json.Unmarshal(r.Spec.GetValue(), &args); err != nil {
		return nil, err
	}
	p := &process{args: &args, inner: inner, status: tasktypes.Status_CREATED, done: make(chan struct{})}
	if err := p.open(r.Stdin, r.Stdout, r.Stderr); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.processes[key(r.ID, r.ExecID)] = p
	return &emptypb.Empty{}, nil
}

// command makes the process: this program as a container's init, or nsenter into one that runs.
func (s *service) command(p *process) (*exec.Cmd, string, error) {
	if p.inner != nil {
		args := []string{"--target", fmt.Sprint(p.inner.cmd.Process.Pid), "--mount", "--uts", "--ipc", "--net", "--pid", "--root"}
		cmd := exec.Command("nsenter", append(append(args, "--wd="+p.args.Cwd, "--"), p.args.Args...)...)
		cmd.Env = p.args.Env
		return cmd, "", nil
	}
	text, err := json.Marshal(p.spec)
	if err != nil {
		return nil, "", err
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		return nil, "", err
	}
	go func() {
		_, _ = io.Copy(writer, strings.NewReader(string(text)))
		writer.Close()
	}()
	cmd := exec.Command("/proc/self/exe", "init")
	cmd.ExtraFiles = []*os.File{reader}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC}
	netns := ""
	for _, each := range p.spec.Linux.Namespaces {
		if each.Type == specs.NetworkNamespace {
			netns = each.Path
		}
	}
	return cmd, netns, nil
}

// startIn starts the command on a thread that is in the network namespace, and dies with it.
func startIn(netns string, cmd *exec.Cmd) error {
	result := make(chan error)
	go func() {
		if netns != "" {
			runtime.LockOSThread()
			file, err := os.Open(netns)
			if err != nil {
				result <- err
				return
			}
			defer file.Close()
			if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
				result <- err
				return
			}
		}
		result <- cmd.Start()
	}()
	return <-result
}

func (s *service) Start(_ context.Context, r *task.StartRequest) (*task.StartResponse, error) {
	p, err := s.find(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	cmd, netns, err := s.command(p)
	if err != nil {
		return nil, err
	}
	if p.files[0] != nil {
		cmd.Stdin = p.files[0]
	}
	if p.files[1] != nil {
		cmd.Stdout = p.files[1]
	}
	if p.files[2] != nil {
		cmd.Stderr = p.files[2]
	}
	p.cmd = cmd
	if err := startIn(netns, cmd); err != nil {
		return nil, err
	}
	if r.ExecID == "" {
		_ = os.WriteFile(filepath.Join(p.bundle, "init.pid"), []byte(fmt.Sprint(cmd.Process.Pid)), 0o600)
	}
	s.mu.Lock()
	p.status = tasktypes.Status_RUNNING
	s.mu.Unlock()
	go func() {
		_ = cmd.Wait()
		status := cmd.ProcessState.Sys().(syscall.WaitStatus)
		s.finish(p, status)
	}()
	return &task.StartResponse{Pid: uint32(cmd.Process.Pid)}, nil
}

func (s *service) finish(p *process, status syscall.WaitStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.exit = uint32(status.ExitStatus())
	if status.Signaled() {
		p.exit = 128 + uint32(status.Signal())
	}
	p.at, p.status = time.Now(), tasktypes.Status_STOPPED
	p.close()
	close(p.done)
}

func (s *service) State(_ context.Context, r *task.StateRequest) (*task.StateResponse, error) {
	p, err := s.find(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	answer := &task.StateResponse{ID: r.ID, ExecID: r.ExecID, Bundle: p.bundle, Status: p.status, ExitStatus: p.exit}
	if p.status == tasktypes.Status_STOPPED {
		answer.ExitedAt = timestamppb.New(p.at)
	}
	return answer, nil
}

func (s *service) Wait(ctx context.Context, r *task.WaitRequest) (*task.WaitResponse, error) {
	p, err := s.find(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	select {
	case <-p.done:
		return &task.WaitResponse{ExitStatus: p.exit, ExitedAt: timestamppb.New(p.at)}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *service) Kill(_ context.Context, r *task.KillRequest) (*emptypb.Empty, error) {
	p, err := s.find(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	created := p.status == tasktypes.Status_CREATED
	s.mu.Unlock()
	if created {
		s.finish(p, syscall.WaitStatus(r.Signal))
	} else if p.cmd.ProcessState == nil {
		_ = p.cmd.Process.Signal(syscall.Signal(r.Signal))
	}
	return &emptypb.Empty{}, nil
}

func (s *service) Delete(_ context.Context, r *task.DeleteRequest) (*task.DeleteResponse, error) {
	p, err := s.find(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.status == tasktypes.Status_RUNNING {
		return nil, errgrpc.ToGRPCf(errdefs.ErrFailedPrecondition, "%q still runs", r.ID)
	}
	p.close()
	delete(s.processes, key(r.ID, r.ExecID))
	return &task.DeleteResponse{ExitStatus: p.exit, ExitedAt: timestamppb.New(p.at)}, nil
}

func (s *service) CloseIO(_ context.Context, r *task.CloseIORequest) (*emptypb.Empty, error) {
	p, err := s.find(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	if r.Stdin && p.stdin != nil {
		p.stdin.Close()
	}
	return &emptypb.Empty{}, nil
}

func (s *service) Connect(context.Context, *task.ConnectRequest) (*task.ConnectResponse, error) {
	return &task.ConnectResponse{ShimPid: uint32(os.Getpid()), Version: "3"}, nil
}

func (s *service) Shutdown(context.Context, *task.ShutdownRequest) (*emptypb.Empty, error) {
	s.end.Shutdown()
	return &emptypb.Empty{}, nil
}

func missing(what string) error { return errgrpc.ToGRPCf(errdefs.ErrNotImplemented, "%s", what) }

func (s *service) Pids(context.Context, *task.PidsRequest) (*task.PidsResponse, error) {
	return nil, missing("Pids")
}
func (s *service) Pause(context.Context, *task.PauseRequest) (*emptypb.Empty, error) {
	return nil, missing("Pause")
}
func (s *service) Resume(context.Context, *task.ResumeRequest) (*emptypb.Empty, error) {
	return nil, missing("Resume")
}
func (s *service) Checkpoint(context.Context, *task.CheckpointTaskRequest) (*emptypb.Empty, error) {
	return nil, missing("Checkpoint")
}
func (s *service) ResizePty(context.Context, *task.ResizePtyRequest) (*emptypb.Empty, error) {
	return nil, missing("ResizePty")
}
func (s *service) Update(context.Context, *task.UpdateTaskRequest) (*emptypb.Empty, error) {
	return nil, missing("Update")
}
func (s *service) Stats(context.Context, *task.StatsRequest) (*task.StatsResponse, error) {
	return nil, missing("Stats")
}

// The sandbox API: the pod is the shim itself, and needs no container to hold it.

func (s *service) CreateSandbox(_ context.Context, r *sandbox.CreateSandboxRequest) (*sandbox.CreateSandboxResponse, error) {
	if r.GetOptions().GetTypeUrl() != "runtime.v1.PodSandboxConfig" {
		return nil, errgrpc.ToGRPCf(errdefs.ErrInvalidArgument, "options are %q, not runtime.v1.PodSandboxConfig", r.GetOptions().GetTypeUrl())
	}
	s.netns = r.NetnsPath
	return &sandbox.CreateSandboxResponse{}, nil
}

func (s *service) StartSandbox(context.Context, *sandbox.StartSandboxRequest) (*sandbox.StartSandboxResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.created, s.ready = time.Now(), true
	return &sandbox.StartSandboxResponse{Pid: uint32(os.Getpid()), CreatedAt: timestamppb.New(s.created)}, nil
}

func (s *service) StopSandbox(context.Context, *sandbox.StopSandboxRequest) (*sandbox.StopSandboxResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.processes {
		if p.status == tasktypes.Status_RUNNING {
			_ = p.cmd.Process.Kill()
		}
	}
	if s.ready {
		s.ready = false
		close(s.stopped)
	}
	return &sandbox.StopSandboxResponse{}, nil
}

func (s *service) WaitSandbox(ctx context.Context, _ *sandbox.WaitSandboxRequest) (*sandbox.WaitSandboxResponse, error) {
	select {
	case <-s.stopped:
		return &sandbox.WaitSandboxResponse{ExitedAt: timestamppb.Now()}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *service) SandboxStatus(_ context.Context, r *sandbox.SandboxStatusRequest) (*sandbox.SandboxStatusResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	state := "SANDBOX_NOTREADY"
	if s.ready {
		state = "SANDBOX_READY"
	}
	return &sandbox.SandboxStatusResponse{SandboxID: r.SandboxID, Pid: uint32(os.Getpid()), State: state, CreatedAt: timestamppb.New(s.created)}, nil
}

func (s *service) Platform(context.Context, *sandbox.PlatformRequest) (*sandbox.PlatformResponse, error) {
	return &sandbox.PlatformResponse{Platform: &types.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH}}, nil
}

func (s *service) PingSandbox(context.Context, *sandbox.PingRequest) (*sandbox.PingResponse, error) {
	return &sandbox.PingResponse{}, nil
}

func (s *service) ShutdownSandbox(context.Context, *sandbox.ShutdownSandboxRequest) (*sandbox.ShutdownSandboxResponse, error) {
	s.end.Shutdown()
	return &sandbox.ShutdownSandboxResponse{}, nil
}

func (s *service) SandboxMetrics(context.Context, *sandbox.SandboxMetricsRequest) (*sandbox.SandboxMetricsResponse, error) {
	return nil, missing("SandboxMetrics")
}

func (s *service) UpdateSandbox(context.Context, *sandbox.UpdateSandboxRequest) (*sandbox.UpdateSandboxResponse, error) {
	return nil, missing("UpdateSandbox")
}
