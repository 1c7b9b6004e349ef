package tls

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/mholt/acmez/v3/acme"
)

func TestExplain(t *testing.T) {
	t.Parallel()
	problem := acme.Problem{Type: acme.ProblemTypeDNS, Detail: "no TXT record\nfound"}
	nested := problem
	nested.Subproblems = []acme.Subproblem{{Problem: acme.Problem{Detail: "at x.test"}}}
	for _, c := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("[x.test] Obtain: %w", fmt.Errorf("[x.test] solving challenges: %w (order=1)", problem)), "dns: no TXT record found"},
		{nested, "dns: no TXT record found; at x.test"},
		{acme.Problem{Detail: "no"}, "no"},
		{fmt.Errorf("[x.test] Obtain: %w", &url.Error{Op: "Get", URL: "https://ca.test/dir", Err: errors.New("refused")}), "ca.test cannot be reached: refused"},
		{fmt.Errorf("[x.test] Obtain: %w", fmt.Errorf("[x.test] %w (ca=y)", fmt.Errorf("presenting: %w", errors.New("exit status 3")))), "presenting: exit status 3"},
		{errors.New("plain"), "plain"},
		{errors.New("[x.test] no more"), "[x.test] no more"},
		{errors.New("bell\a and \x1b[31mred"), "bell and [31mred"},
	} {
		if got := Explain(c.err); got != c.want {
			t.Errorf("Explain(%q) = %q, want %q", c.err, got, c.want)
		}
	}
	if got := Explain(errors.New(strings.Repeat("ü", 1000))); len(got) > maxReason+len("…") || !strings.HasSuffix(got, "ü…") {
		t.Errorf("a reason has %d bytes and ends with %q", len(got), got[len(got)-5:])
	}
}

func TestNextPause(t *testing.T) {
	t.Parallel()
	limited := fmt.Errorf("x: %w", acme.Problem{Type: acme.ProblemTypeRateLimited})
	pause := firstRetry
	for range 20 {
		pause = nextPause(pause, firstRetry, errors.New("x"))
		pause = nextPause(pause, firstRetry, nil)
	}
	if pause != lastRetry {
		t.Errorf("pauses grow to %v, want %v", pause, lastRetry)
	}
	if got := nextPause(firstRetry, firstRetry, limited); got != rateLimited*firstRetry {
		t.Errorf("an authority that had enough is asked again after %v", got)
	}
	if got := nextPause(lastRetry, firstRetry, limited); got != lastRetry {
		t.Errorf("the pause shrank to %v", got)
	}
}
