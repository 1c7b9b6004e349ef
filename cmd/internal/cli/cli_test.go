package cli

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

// A settings command stands for harpd: it has one flag of each kind, and remembers what it was run with.
type probe struct {
	domain, tls, level, format string
	body                       int64
	timeout                    time.Duration
	streams                    int
	rate                       float64
	audience, route, headers   []string
	wait, once                 bool
	ran                        bool
}

func newProbe() (*probe, *cobra.Command) {
	p := &probe{}
	root := &cobra.Command{Use: "probe", Short: "tries the flags", RunE: func(*cobra.Command, []string) error {
		p.ran = true
		return nil
	}}
	f := LocalFlags(root)
	f.Group("Names")
	f.String(&p.domain, "domain DOMAIN", "", "public name")
	f.Strings(&p.audience, "audience NAME", "also accept")
	f.Choices(&p.route, "route KIND", []string{"host"}, []string{"host", "path", "header"}, "route by")
	f.Choice(&p.tls, "tls KIND", "auto", []string{"auto", "internal", "files", "off"}, "certificates")
	f.Group("Limits")
	f.Size(&p.body, "max-body SIZE", 500<<10, "largest body")
	f.Duration(&p.timeout, "request-timeout TIME", 30*time.Second, "patience")
	f.Int(&p.streams, "max-streams N", 1000, "streams")
	f.Float(&p.rate, "rate-limit N", 100, "requests a second")
	f.Lines(&p.headers, "header-add 'Name: value'", "add a field")
	f.Bool(&p.wait, "wait", true, "wait")
	f.Bool(&p.once, "force", false, "overwrite")
	f.ArgOnly("force")
	GlobalFlags(root).General(&p.level, &p.format)
	root.AddCommand(&cobra.Command{Use: "status", Short: "says how it is", RunE: func(*cobra.Command, []string) error { return nil }})
	return p, root
}

// runProbe returns the settings, the exit code and stderr.
func runProbe(t *testing.T, args ...string) (*probe, int, string) {
	t.Helper()
	p, root := newProbe()
	var stdout, stderr bytes.Buffer
	code := Main(root, "PROBE_", args, &stdout, &stderr)
	return p, code, stderr.String()
}

func writeConfig(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "probe.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestPrecedence(t *testing.T) {
	config := writeConfig(t, "domain: file\nmax_body: 1mb\nrequest-timeout: 5s\nroute: [host, path]\n")
	t.Setenv("PROBE_DOMAIN", "env")
	t.Setenv("PROBE_MAX_BODY", "2mb")
	t.Setenv("PROBE_MAX_STREAMS", "")             // empty counts as unset
	t.Setenv("PROBE_PORT", "tcp://10.0.0.1:80")   // Kubernetes
	t.Setenv("PROBE_FORCE", "true")               // a flag of the command line alone
	t.Setenv("PROBE_HEADER_ADD", "A: 1, 2\nB: 3") // values that hold commas
	p, code, stderr := runProbe(t, "--config", config, "--domain", "flag")
	if code != 0 || !p.ran {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	if p.domain != "flag" {
		t.Errorf("domain %q, want the flag's: it counts before environment and file", p.domain)
	}
	if p.body != 2<<20 {
		t.Errorf("max-body %d, want the environment's: it counts before the file", p.body)
	}
	if p.timeout != 5*time.Second {
		t.Errorf("request-timeout %v, want the file's", p.timeout)
	}
	if p.streams != 1000 {
		t.Errorf("max-streams %d, want the declared 1000", p.streams)
	}
	if want := []string{"host", "path"}; !slices.Equal(p.route, want) {
		t.Errorf("route %q, want %q: a YAML list replaces the declared values", p.route, want)
	}
	if want := []string{"A: 1, 2", "B: 3"}; !slices.Equal(p.headers, want) {
		t.Errorf("header-add %q, want %q", p.headers, want)
	}
	if p.once {
		t.Error("force was read from the environment")
	}
}

func TestConfigFromEnvironment(t *testing.T) {
	t.Setenv("PROBE_CONFIG", writeConfig(t, "domain: file\n"))
	if p, _, stderr := runProbe(t); p.domain != "file" {
		t.Errorf("domain %q, want the one of the file named by PROBE_CONFIG: %s", p.domain, stderr)
	}
}

func TestFlagsAsTyped(t *testing.T) {
	p, code, stderr := runProbe(t, "--max_body=64KiB", "--audience", "a,b", "--audience", "c", "--route=path",
		"--header-add", "X: 1, 2", "--header-add", "Y: 3", "--wait=no", "--tls", "OFF", "--rate_limit", "0.5")
	if code != 0 {
		t.Fatal(stderr)
	}
	if p.body != 64<<10 {
		t.Errorf("max_body=64KiB gave %d: underscores count as dashes", p.body)
	}
	if want := []string{"a", "b", "c"}; !slices.Equal(p.audience, want) {
		t.Errorf("audience %q, want %q: repeated and by commas", p.audience, want)
	}
	if want := []string{"path"}; !slices.Equal(p.route, want) {
		t.Errorf("route %q, want %q: the declared values go", p.route, want)
	}
	if want := []string{"X: 1, 2", "Y: 3"}; !slices.Equal(p.headers, want) {
		t.Errorf("header-add %q, want %q: a comma does not divide it", p.headers, want)
	}
	if p.wait || p.tls != "off" || p.rate != 0.5 {
		t.Errorf("wait %v tls %q rate %v, want false off 0.5", p.wait, p.tls, p.rate)
	}
}

func TestYAMLKeepsTexts(t *testing.T) {
	for _, text := range []string{"007", "1.10", "yes", "1e3", "0x10", "off", "2026-01-01"} {
		if p, _, stderr := runProbe(t, "--config", writeConfig(t, "domain: "+text)); p.domain != text {
			t.Errorf("domain: %s came out as %q: %s", text, p.domain, stderr)
		}
	}
}

func TestMessages(t *testing.T) {
	tests := []struct {
		name   string
		args   []string
		config string
		want   string
	}{
		{"unknown flag", []string{"--domian", "x"}, "",
			"probe: unknown flag --domian\nhint: did you mean --domain? see probe --help\n"},
		{"unknown flag, nothing near", []string{"--zzzzzzz"}, "",
			"probe: unknown flag --zzzzzzz\nhint: see probe --help\n"},
		{"one dash", []string{"-domain", "x"}, "",
			"probe: unknown flag -domain\nhint: did you mean --domain? see probe --help\n"},
		{"unknown command", []string{"staus"}, "",
			"probe: unknown command \"staus\"\nhint: probe status\n"},
		{"unknown help topic", []string{"help", "staus"}, "",
			"probe: unknown command \"staus\"\nhint: probe status\n"},
		{"argument too many", []string{"status", "x"}, "",
			"probe: unexpected argument \"x\"\nhint: see probe status --help\n"},
		{"no value", []string{"--max-body"}, "",
			"probe: --max-body needs a value\nhint: probe --max-body SIZE\n"},
		{"bad size", []string{"--max-body", "12x"}, "",
			"probe: --max-body \"12x\": not a size\nhint: write a whole number with its unit: 500kb, 1mb, 64kib or 512000\n"},
		{"bad duration", []string{"--request-timeout", "30"}, "",
			"probe: --request-timeout \"30\": not a span of time\nhint: write a number with its unit: 500ms, 30s, 5m or 1h30m\n"},
		{"bad number", []string{"--rate-limit", "NaN"}, "",
			"probe: --rate-limit \"NaN\": not a number\nhint: write a number, such as 100 or 0.5\n"},
		{"bad choice", []string{"--tls", "fils"}, "",
			"probe: --tls \"fils\": not one of auto, internal, files, off\nhint: did you mean files? write auto, internal, files or off\n"},
		{"unknown key", nil, "max-boddy: 1mb",
			"probe: FILE: unknown key \"max-boddy\"\nhint: did you mean max-body?\n"},
		{"nested key", nil, "max:\n  body: 1mb",
			"probe: FILE: line 1: max: a value or a list is wanted, not further keys\nhint: a line is KEY: VALUE, such as max-body: 1mb\n"},
		{"key twice", nil, "max-body: 1mb\nmax_body: 2mb",
			"probe: FILE: line 2: max-body is set twice\nhint: a line is KEY: VALUE, such as max-body: 1mb\n"},
		{"list for one value", nil, "max-body: [1mb]",
			"probe: FILE: max-body: one value wanted, not a list\n"},
		{"bad value in the file", nil, "max-body: 12x",
			"probe: FILE: max-body \"12x\": not a size\nhint: write a whole number with its unit: 500kb, 1mb, 64kib or 512000\n"},
		{"a flag of the command line alone", nil, "force: true",
			"probe: FILE: unknown key \"force\"\nhint: the keys are the flags of --help without their dashes\n"},
		{"not a mapping", nil, "hello",
			"probe: FILE: line 1: not a list of KEY: VALUE lines\nhint: a line is KEY: VALUE, such as max-body: 1mb\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			args, want := test.args, test.want
			if test.config != "" {
				path := writeConfig(t, test.config)
				args, want = append(args, "--config", path), strings.ReplaceAll(want, "FILE", path)
			}
			p, code, got := runProbe(t, args...)
			if got != want {
				t.Errorf("stderr\n%swant\n%s", got, want)
			}
			if code != CodeUsage || p.ran {
				t.Errorf("exit code %d, ran %v; want 1 and not run", code, p.ran)
			}
		})
	}
}

func TestBadEnvironmentIsNamed(t *testing.T) {
	t.Setenv("PROBE_MAX_BODY", "12x")
	if _, _, got := runProbe(t); !strings.HasPrefix(got, "probe: PROBE_MAX_BODY \"12x\": not a size\n") {
		t.Errorf("stderr %q, want the variable's name in it", got)
	}
}

func TestMissingConfig(t *testing.T) {
	_, code, got := runProbe(t, "--config", filepath.Join(t.TempDir(), "none.yaml"))
	if code != CodeUsage || !strings.Contains(got, "no such file") || !strings.Contains(got, "\nhint: ") {
		t.Errorf("exit code %d, stderr %q; want 1, the reason and a hint", code, got)
	}
}

func TestCommandsWithoutSettingsIgnoreTheFile(t *testing.T) {
	t.Setenv("PROBE_CONFIG", "/nonexistent")
	if _, code, stderr := runProbe(t, "completion", "bash"); code != 0 {
		t.Errorf("completion failed beside a broken file: %s", stderr)
	}
}

func TestReport(t *testing.T) {
	var b bytes.Buffer
	err := &Error{Err: errors.New("the edge said:\n\x1b[31mno\x1b[0m"), Hint: "try\nagain", Code: 7}
	if code := report(&b, "probe", err); code != 7 {
		t.Errorf("exit code %d, want 7", code)
	}
	if want := "probe: the edge said:; \\x1b[31mno\\x1b[0m\nhint: try; again\n"; b.String() != want {
		t.Errorf("printed %q, want %q: two lines, nothing that steers a terminal", b.String(), want)
	}
}

func TestHelp(t *testing.T) {
	_, root := newProbe()
	var out, stderr bytes.Buffer
	if code := Main(root, "PROBE_", []string{"--help"}, &out, &stderr); code != 0 {
		t.Fatal(stderr.String())
	}
	for _, want := range []string{
		"tries the flags\n\nUsage:\n  probe [flags]\n  probe COMMAND\n",
		"\n  status                      says how it is\n",
		"\nNames:\n  --domain DOMAIN             public name [PROBE_DOMAIN]\n",
		"  --max-body SIZE             largest body (default 500kb) [PROBE_MAX_BODY]\n",
		"  --force                     overwrite\n", // no variable: a flag of the command line alone
		"\nGeneral:\n  --config FILE",
		"  -h, --help ",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("help lacks %q:\n%s", want, out.String())
		}
	}
	if names, limits := strings.Index(out.String(), "Names:"), strings.Index(out.String(), "Limits:"); names > limits {
		t.Error("groups are not in the order of declaration")
	}
}
