package tls

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/mholt/acmez/v3/acme"
)

const (
	execTime  = time.Minute     // for one call of a program
	spread    = 2 * time.Minute // for a record to be seen
	lookEvery = 2 * time.Second
)

// A TXTSolver answers DNS-01 challenges (RFC 8555, section 8.4) by a DNS server of this process.
type TXTSolver struct {
	// Add and Remove change the values of the TXT records at name, which has no last dot. Several values can stand at one
	// name.
	Add, Remove func(name, value string) error
	// Name replaces the challenge's own name, for one that is a CNAME. Empty means none.
	Name string
}

// Present adds the record.
func (s TXTSolver) Present(_ context.Context, c acme.Challenge) error {
	return s.Add(s.name(c), c.DNS01KeyAuthorization())
}

// CleanUp removes the record.
func (s TXTSolver) CleanUp(_ context.Context, c acme.Challenge) error {
	return s.Remove(s.name(c), c.DNS01KeyAuthorization())
}

func (s TXTSolver) name(c acme.Challenge) string {
	if s.Name != "" {
		return s.Name
	}
	return c.DNS01TXTRecordName()
}

// An ExecSolver answers DNS-01 challenges by a program: PATH present NAME VALUE makes the TXT record, PATH cleanup NAME
// VALUE removes it. NAME has no last dot. A program that does not exit with 0 within a minute has failed.
type ExecSolver struct {
	Path string
	// Resolver is asked whether the record can be seen. Nil means the system's.
	Resolver *net.Resolver
}

// Present runs the program.
func (s ExecSolver) Present(ctx context.Context, c acme.Challenge) error {
	return s.run(ctx, "present", c)
}

// CleanUp runs the program.
func (s ExecSolver) CleanUp(ctx context.Context, c acme.Challenge) error {
	return s.run(ctx, "cleanup", c)
}

// Wait returns when the record can be seen, and after two minutes in any case: the authority may see more.
func (s ExecSolver) Wait(ctx context.Context, c acme.Challenge) error {
	r := s.Resolver
	if r == nil {
		r = net.DefaultResolver
	}
	waiting, cancel := context.WithTimeout(ctx, spread)
	defer cancel()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		values, _ := r.LookupTXT(waiting, c.DNS01TXTRecordName()+".")
		if slices.Contains(values, c.DNS01KeyAuthorization()) {
			return nil
		}
		select {
		case <-waiting.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

func (s ExecSolver) run(ctx context.Context, verb string, c acme.Challenge) error {
	ctx, cancel := context.WithTimeout(ctx, execTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.Path, verb, c.DNS01TXTRecordName(), c.DNS01KeyAuthorization())
	cmd.WaitDelay = time.Second // what the program started itself may hold its output open
	var out tail
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s %s: %w: %s", s.Path, verb, c.DNS01TXTRecordName(), err, out.last())
	}
	return nil
}

// A tail keeps the end of what is written to it.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	const most = 1 << 10
	t.b = append(t.b, p[max(0, len(p)-most):]...)
	t.b = t.b[max(0, len(t.b)-most):]
	return len(p), nil
}

// last is the last line that says anything.
func (t *tail) last() string {
	lines := bytes.Split(bytes.TrimSpace(t.b), []byte("\n"))
	return strings.TrimSpace(string(lines[len(lines)-1]))
}
