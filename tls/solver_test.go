package tls

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mholt/acmez/v3/acme"
)

var challenge = acme.Challenge{
	Type: "dns-01", Token: "token", KeyAuthorization: "token.key",
	Identifier: acme.Identifier{Type: "dns", Value: "tunnels.example.com"},
}

func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "set-txt")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestExecSolver(t *testing.T) {
	t.Parallel()
	log := filepath.Join(t.TempDir(), "log")
	s := ExecSolver{Path: script(t, `echo "$@" >> `+log)}
	if err := s.Present(context.Background(), challenge); err != nil {
		t.Fatal(err)
	}
	if err := s.CleanUp(context.Background(), challenge); err != nil {
		t.Fatal(err)
	}
	args := " _acme-challenge.tunnels.example.com " + challenge.DNS01KeyAuthorization() + "\n"
	if got, _ := os.ReadFile(log); string(got) != "present"+args+"cleanup"+args {
		t.Errorf("the program was called with %q", got)
	}
}

func TestExecSolverFails(t *testing.T) {
	t.Parallel()
	s := ExecSolver{Path: script(t, "echo trying\necho 'no such zone' >&2\nexit 3")}
	err := s.Present(context.Background(), challenge)
	if err == nil || !strings.Contains(err.Error(), "exit status 3: no such zone") {
		t.Errorf("got %v, want the code and the last line", err)
	}
	if err := (ExecSolver{Path: "/does/not/exist"}).Present(context.Background(), challenge); err == nil {
		t.Error("a program that is not there was run")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := (ExecSolver{Path: script(t, "sleep 60 & sleep 60")}).Present(ctx, challenge); err == nil {
		t.Error("a program outlived its context")
	}
}
