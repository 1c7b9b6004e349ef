package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

// asStubborn set in the environment makes TestSignals a program that never finishes draining.
const asStubborn = "TEST_BE_STUBBORN"

func TestSignals(t *testing.T) {
	if os.Getenv(asStubborn) != "" {
		os.Exit(Main(stubborn(), "STUBBORN_", nil, os.Stdout, os.Stderr))
	}
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.CommandContext(t.Context(), binary, "-test.run=^TestSignals$")
	child.Env = append(os.Environ(), asStubborn+"=1")
	stdin, err := child.StdinPipe() // keeps it waiting
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	expect := func(want string) {
		t.Helper()
		if !lines.Scan() || lines.Text() != want {
			t.Fatalf("printed %q, want %q", lines.Text(), want)
		}
	}
	expect("started")
	if err := child.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	expect("draining") // the first signal cancels the context
	ended := make(chan error, 1)
	go func() { ended <- child.Wait() }() // ends with the child
	for {
		// Repeated, because the first of these can come before the signal has got its ordinary effect back.
		_ = child.Process.Signal(os.Interrupt)
		select {
		case err := <-ended:
			exit, ok := errors.AsType[*exec.ExitError](err)
			if !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGINT {
				t.Errorf("ended with %v, want by the second SIGINT", err)
			}
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func stubborn() *cobra.Command {
	return &cobra.Command{Use: "stubborn", RunE: func(cmd *cobra.Command, _ []string) error {
		fmt.Println("started")
		<-cmd.Context().Done()
		fmt.Println("draining")
		_, err := io.Copy(io.Discard, os.Stdin)
		return err
	}}
}
