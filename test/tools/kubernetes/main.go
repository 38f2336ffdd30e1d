// Command kube is the Kubernetes control plane and node agent in one binary:
// what it is started as (argv[0]) decides which program runs. One binary costs
// a quarter of the link time and disk of four.
//
// As k3s and kubelite it stands in for those two: the same kubelet, inside a
// process of that name, told what it is told where they tell theirs.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

func main() {
	programs := map[string]func() *cobra.Command{
		"kube-apiserver":          apiserver.NewAPIServerCommand,
		"kube-controller-manager": controllermanager.NewControllerManagerCommand,
		"kube-scheduler":          func() *cobra.Command { return scheduler.NewSchedulerCommand() },
		"kubelet":                 kubeletCommand,
		"k3s":                     k3s,
		"kubelite":                kubelite,
	}
	program, ok := programs[filepath.Base(os.Args[0])]
	if !ok {
		fmt.Fprintf(os.Stderr, "kube: start it as one of kube-apiserver, kube-controller-manager, kube-scheduler, kubelet, k3s, kubelite, not %q\n", os.Args[0])
		os.Exit(2)
	}
	os.Exit(cli.Run(program()))
}

// kubeletCommand is the kubelet of any version: up to 1.33 it took no context.
func kubeletCommand() *cobra.Command {
	switch command := any(kubelet.NewKubeletCommand).(type) {
	case func() *cobra.Command:
		return command()
	case func(context.Context) *cobra.Command:
		return command(context.Background())
	}
	panic("kube: this version's kubelet is started in another way")
}

// k3s starts containerd as its child, which ends with it, and runs the kubelet
// beside. The directories are k3s' own but for containerd's root, which has to
// be on the node's disk.
func k3s() *cobra.Command {
	// A child's death signal comes when the thread ends that made it.
	runtime.LockOSThread()
	containerd := exec.Command("containerd",
		"-c", "/var/lib/rancher/k3s/agent/etc/containerd/config.toml",
		"-a", "/run/k3s/containerd/containerd.sock",
		"--state", "/run/k3s/containerd",
		"--root", "/var/lib/containerd/k3s")
	containerd.Stdout, containerd.Stderr = os.Stdout, os.Stderr
	containerd.Env = []string{"PATH=" + os.Getenv("PATH")}
	containerd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := containerd.Start(); err != nil {
		fmt.Fprintf(os.Stderr, "k3s: cannot start containerd: %v\n", err)
		os.Exit(1)
	}
	go func() {
		fmt.Fprintf(os.Stderr, "k3s: containerd ended: %v\n", containerd.Wait())
		os.Exit(1)
	}()
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		connection, err := net.Dial("unix", "/run/k3s/containerd/containerd.sock")
		if err == nil {
			connection.Close()
			return kubeletOf("/etc/rancher/k3s/kubelet.args")
		}
		if time.Now().After(end) {
			fmt.Fprintf(os.Stderr, "k3s: containerd does not come up: %v\n", err)
			os.Exit(1)
		}
	}
}

// kubelite takes the kubelet's arguments from a file, with its own variables
// put in.
func kubelite() *cobra.Command {
	file := "/var/snap/microk8s/current/args/kubelet"
	for _, word := range os.Args[1:] {
		if path, ok := strings.CutPrefix(word, "--kubelet-args-file="); ok {
			file = path
		}
	}
	return kubeletOf(file)
}

func kubeletOf(file string) *cobra.Command {
	text, err := os.ReadFile(file)
	if err != nil {
		fmt.Fprintf(os.Stderr, "kube: cannot read the kubelet's arguments: %v\n", err)
		os.Exit(1)
	}
	command := kubeletCommand()
	command.SetArgs(strings.Fields(os.ExpandEnv(string(text))))
	return command
}
