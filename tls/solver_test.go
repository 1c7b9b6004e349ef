package tls

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mholt/acmez/v3/acme"
	mdns "github.com/miekg/dns"
)

var challenge = acme.Challenge{
	Type: "dns-01", Token: "token", KeyAuthorization: "token.key",
	Identifier: acme.Identifier{Type: "dns", Value: "tunnels.example.com"},
}

func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "set-txt")
	syscall.ForkLock.RLock() // a child that is being forked would hold the file open for writing: text file busy
	defer syscall.ForkLock.RUnlock()
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
	for said, want := range map[string]string{
		"":                                  "exit status 3",
		"echo only to standard output":      "exit status 3",
		`printf '\033[31mred\033[0m\n' >&2`: "exit status 3: [31mred [0m",
		"head -c 100000 /dev/zero | tr '\\0' x >&2": "exit status 3: " + strings.Repeat("x", 1<<10),
	} {
		err := ExecSolver{Path: script(t, said+"\nexit 3")}.Present(context.Background(), challenge)
		if err == nil || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%q: got %v, want it to end with %q", said, err, want)
		}
	}
}

func TestExecSolverKills(t *testing.T) {
	t.Parallel()
	// The pipe that the program and what it started share is at its end once all of them are gone.
	for what, end := range map[string]func(cancel func()){
		"the context ended": func(cancel func()) { cancel() },
		"it took too long":  func(func()) {},
	} {
		pipe := filepath.Join(t.TempDir(), "alive")
		if err := syscall.Mkfifo(pipe, 0o600); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		s := ExecSolver{Path: script(t, "exec 3>"+pipe+"\necho started >&3\nsleep 60 &\nsleep 60")}
		if what == "it took too long" {
			s.Timeout = time.Second
		}
		result := make(chan error, 1)
		go func() { result <- s.Present(ctx, challenge) }() // ends with ctx or its time
		alive, err := os.Open(pipe)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(alive, make([]byte, len("started\n"))); err != nil {
			t.Fatal(err)
		}
		end(cancel)
		err = <-result
		if err == nil || !errors.Is(err, context.Canceled) && !strings.Contains(err.Error(), "it took longer than 1s") {
			t.Errorf("%s: got %v", what, err)
		}
		_ = alive.SetReadDeadline(time.Now().Add(10 * time.Second))
		if n, err := alive.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("%s: what the program started is still there: %d, %v", what, n, err)
		}
		alive.Close()
		cancel()
	}
}

func TestExecSolverLeavesChild(t *testing.T) {
	t.Parallel()
	if err := (ExecSolver{Path: script(t, "sleep 3 &\nexit 0")}).Present(context.Background(), challenge); err != nil {
		t.Errorf("exit status 0 with a child that holds standard error: %v", err)
	}
}

func TestExecSolverCleansUpLate(t *testing.T) {
	t.Parallel()
	log := filepath.Join(t.TempDir(), "log")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	s := ExecSolver{Path: script(t, "echo $1 >> "+log)}
	if err := s.Present(ctx, challenge); !errors.Is(err, context.Canceled) {
		t.Errorf("present after the end: got %v, want context.Canceled", err)
	}
	if err := s.CleanUp(ctx, challenge); err != nil {
		t.Errorf("cleanup after the end: %v", err)
	}
	if got, _ := os.ReadFile(log); string(got) != "cleanup\n" {
		t.Errorf("the program was called with %q, want cleanup alone", got)
	}
}

func TestExecSolverEnvironment(t *testing.T) {
	t.Setenv("HARPD_SECRET", "not for others")
	log := filepath.Join(t.TempDir(), "log")
	if err := (ExecSolver{Path: script(t, "env > "+log)}).Present(context.Background(), challenge); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(got), "HARPD_SECRET") {
		t.Error("the program got a setting of this process")
	}
	if !strings.Contains(string(got), "PATH="+os.Getenv("PATH")) {
		t.Error("the program did not get PATH")
	}
	if kept := programEnv([]string{"HARPD_SECRET=x"}); kept == nil || len(kept) != 0 {
		t.Errorf("got %q, want empty and not nil, which is everything", kept)
	}
}

// wildcardChallenge is the one for *.tunnels.example.com, which has the same name in the DNS.
var wildcardChallenge = func() acme.Challenge {
	c := challenge
	c.Token, c.KeyAuthorization = "other", "other.key"
	return c
}()

func TestTwoValuesAtOneName(t *testing.T) {
	t.Parallel()
	var held []string
	solver := TXTSolver{
		Add: func(name, value string) error { held = append(held, name+" "+value); return nil },
		Remove: func(name, value string) error {
			held = slices.DeleteFunc(held, func(s string) bool { return s == name+" "+value })
			return nil
		},
	}
	ctx := context.Background()
	for _, c := range []acme.Challenge{challenge, wildcardChallenge} {
		if err := solver.Present(ctx, c); err != nil {
			t.Fatal(err)
		}
	}
	const name = "_acme-challenge.tunnels.example.com "
	if want := []string{name + challenge.DNS01KeyAuthorization(), name + wildcardChallenge.DNS01KeyAuthorization()}; !slices.Equal(held, want) {
		t.Errorf("got %q, want %q", held, want)
	}
	if err := solver.CleanUp(ctx, challenge); err != nil {
		t.Fatal(err)
	}
	if want := []string{name + wildcardChallenge.DNS01KeyAuthorization()}; !slices.Equal(held, want) {
		t.Errorf("after one was removed: got %q, want %q", held, want)
	}
	solver.Name = "acme.example.net"
	if err := solver.Present(ctx, challenge); err != nil || held[1] != "acme.example.net "+challenge.DNS01KeyAuthorization() {
		t.Errorf("for a CNAME: got %q, %v", held, err)
	}
}

func TestExecSolverWaits(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	shown := func(w mdns.ResponseWriter, r *mdns.Msg) { // the wildcard's value at first, then both
		m := new(mdns.Msg).SetReply(r)
		values := []string{wildcardChallenge.DNS01KeyAuthorization()}
		if asked.Add(1) > 1 {
			values = append(values, challenge.DNS01KeyAuthorization())
		}
		for _, v := range values {
			hdr := mdns.RR_Header{Name: r.Question[0].Name, Rrtype: mdns.TypeTXT, Class: mdns.ClassINET}
			m.Answer = append(m.Answer, &mdns.TXT{Hdr: hdr, Txt: []string{v}})
		}
		_ = w.WriteMsg(m)
	}
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	up, done := make(chan struct{}), make(chan error, 1)
	server := &mdns.Server{PacketConn: conn, Handler: mdns.HandlerFunc(shown), NotifyStartedFunc: func() { close(up) }}
	go func() { done <- server.ActivateAndServe() }() // ends with Shutdown
	<-up
	defer func() { _ = server.Shutdown(); <-done }()
	s := ExecSolver{Resolver: &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", conn.LocalAddr().String())
	}}}
	if err := s.Wait(context.Background(), challenge); err != nil {
		t.Error(err)
	}
	if asked.Load() < 2 {
		t.Errorf("asked %d times, want until its own value is seen", asked.Load())
	}
}

func TestExecSolverWaitEnds(t *testing.T) {
	t.Parallel()
	away := ExecSolver{Resolver: &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("no resolver")
	}}}
	_, _ = away.Resolver.LookupTXT(context.Background(), "example.com.") // net makes a channel at its first use, for all
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		if err := away.Wait(context.Background(), challenge); err != nil || time.Since(began) != spread {
			t.Errorf("a record that is never seen: got %v after %v, want no error after %v", err, time.Since(began), spread)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := away.Wait(ctx, challenge); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the context ended: got %v, want its error", err)
		}
	})
}
