package tls

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/mholt/acmez/v3/acme"
)

const (
	execTime    = time.Minute      // for one call of a program
	cleanUpTime = 10 * time.Second // for a cleanup after the end
	spread      = 2 * time.Minute  // for a record to be seen
	lookEvery   = 2 * time.Second
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
// VALUE removes it. NAME has no last dot; several values can stand at one name, as for a domain and its wildcard. Exit
// status 0 means done. Of this process's environment the program gets what programs need to run (see programEnv), none of
// its settings; nothing on its standard input; its standard output is discarded.
type ExecSolver struct {
	Path string
	// Timeout bounds one call; zero means a minute. A program that takes longer is killed, with all that it started.
	Timeout time.Duration
	// Resolver is asked whether the record can be seen. Nil means the system's.
	Resolver *net.Resolver
}

// Present runs the program. The error holds the last line of its standard error.
func (s ExecSolver) Present(ctx context.Context, c acme.Challenge) error {
	return s.run(ctx, "present", c)
}

// CleanUp runs the program. If ctx has ended already, as it has when an attempt is given up, the program still gets ten
// seconds: the record would stay for ever.
func (s ExecSolver) CleanUp(ctx context.Context, c acme.Challenge) error {
	if ctx.Err() != nil {
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpTime)
		defer cancel()
		ctx = late
	}
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
	limit := s.Timeout
	if limit <= 0 {
		limit = execTime
	}
	errLate := fmt.Errorf("it took longer than %v", limit)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errLate)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.Path, verb, c.DNS01TXTRecordName(), c.DNS01KeyAuthorization())
	cmd.Env = programEnv(os.Environ())
	cmd.WaitDelay = time.Second // what the program started itself may hold its output open
	killGroup(cmd)
	var out tail
	cmd.Stderr = &out
	err := cmd.Run()
	if err == nil || errors.Is(err, exec.ErrWaitDelay) { // which means that it did exit with 0
		return nil
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if last := out.last(); last != "" {
		return fmt.Errorf("%s %s %s: %w: %s", s.Path, verb, c.DNS01TXTRecordName(), err, last)
	}
	return fmt.Errorf("%s %s %s: %w", s.Path, verb, c.DNS01TXTRecordName(), err)
}

// programEnv keeps what programs need to find their way, their certificates and their proxy. The rest may hold secrets.
func programEnv(environ []string) []string {
	names := []string{
		"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR",
		"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
		"TEMP", "TMP", "USERPROFILE", "APPDATA", "PATHEXT", "COMSPEC", // Windows
	}
	kept := []string{} // nil would mean all
	for _, v := range environ {
		if name, _, _ := strings.Cut(v, "="); slices.Contains(names, name) || runtime.GOOS == "windows" && slices.Contains(names, strings.ToUpper(name)) {
			kept = append(kept, v)
		}
	}
	return kept
}

// A tail keeps the end of what is written to it.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	const most = 1 << 10
	t.b = append(t.b, p[max(0, len(p)-most):]...)
	t.b = t.b[max(0, len(t.b)-most):]
	return len(p), nil
}

// last is the last line that says anything, without what would disturb a terminal.
func (t *tail) last() string {
	lines := strings.Split(strings.TrimSpace(strings.ToValidUTF8(string(t.b), "")), "\n")
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, lines[len(lines)-1]))
}
