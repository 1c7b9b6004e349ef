package dns

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/libdns/libdns"
	mdns "github.com/miekg/dns"
)

const knotConfig = `server:
    rundir: "%[1]s"
    listen: %[2]s
database:
    storage: "%[1]s"
    journal-db-max-size: 16M
    timer-db-max-size: 4M
log:
  - target: stderr
    any: info
key:
  - id: acme
    algorithm: hmac-sha256
    secret: %[3]s
  - id: reader
    algorithm: hmac-sha512
    secret: %[3]s
acl:
  - id: challenges
    key: acme
    action: update
    update-type: [TXT]
zone:
  - domain: example.com
    file: "%[1]s/zone"
    acl: challenges
    zonefile-sync: -1
    journal-content: all
`

const knotZone = `example.com. 60 SOA ns.example.com. hostmaster.example.com. 1 60 60 60 60
example.com. 60 NS ns.example.com.
ns.example.com. 60 A 127.0.0.1
`

// knot runs Knot DNS with the zone example.com on a free port of loopback, and returns its address.
func knot(t *testing.T) (addr string, stop func()) {
	t.Helper()
	path, err := exec.LookPath("knotd")
	if err != nil {
		if path, err = exec.LookPath("/usr/sbin/knotd"); err != nil { // not in the PATH of all users
			t.Skip("SKIPPED, RFC 2136 IS NOT TESTED against a real server: knotd is missing. Run: apt-get install knot")
		}
	}
	dir := t.TempDir()
	tcp, udp := listenBoth(t)
	addr = tcp.Addr().String()
	tcp.Close()
	udp.Close()
	config := fmt.Sprintf(knotConfig, dir, strings.Replace(addr, ":", "@", 1), testSecret)
	for name, text := range map[string]string{"knot.conf": config, "zone": knotZone} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var log bytes.Buffer // read after done is closed
	cmd := exec.Command(path, "-c", filepath.Join(dir, "knot.conf"))
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &log, &log, time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = cmd.Wait() }() // ends with stop
	stop = func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			_ = cmd.Process.Kill()
			<-done
		}
	}
	t.Cleanup(func() {
		stop()
		if t.Failed() {
			t.Logf("knotd said:\n%s", &log)
		}
	})
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for limit := time.After(20 * time.Second); ; {
		client := mdns.Client{Timeout: time.Second}
		m, _, err := client.Exchange(new(mdns.Msg).SetQuestion("example.com.", mdns.TypeSOA), addr)
		if err == nil && m.Rcode == mdns.RcodeSuccess {
			return addr, stop
		}
		select {
		case <-tick.C:
		case <-done:
			t.Fatalf("knotd ended:\n%s", &log)
		case <-limit:
			t.Fatal("knotd does not answer")
		}
	}
}

// texts of the TXT records at name, in order.
func txtAt(t *testing.T, addr, name string) (out []string) {
	t.Helper()
	client := mdns.Client{Net: "tcp", Timeout: 5 * time.Second}
	m, _, err := client.Exchange(new(mdns.Msg).SetQuestion(name, mdns.TypeTXT), addr)
	if err != nil {
		t.Fatal(err)
	}
	for _, rr := range m.Answer {
		if txt, ok := rr.(*mdns.TXT); ok {
			out = append(out, strings.Join(txt.Txt, ""))
		}
	}
	slices.Sort(out)
	return out
}

func TestKnot(t *testing.T) {
	t.Parallel()
	addr, stop := knot(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	provider := func(text string) *RFC2136 {
		p, err := NewRFC2136(addr, "", keyFile(t, text, 0o600))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	p := provider("hmac-sha256:acme:" + testSecret)
	const at = "_acme-challenge.tunnels.example.com."
	txt := func(text string) []libdns.Record {
		return []libdns.Record{libdns.TXT{Name: "_acme-challenge.tunnels", Text: text}}
	}
	holds := func(why string, want ...string) {
		t.Helper()
		if got := txtAt(t, addr, at); !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", why, got, want)
		}
	}
	ok := func(got []libdns.Record, err error) {
		t.Helper()
		if err != nil || len(got) != 1 {
			t.Errorf("got %v, %v, want one record", got, err)
		}
	}

	ok(p.AppendRecords(ctx, "example.com.", txt("apex")))
	holds("one was added", "apex")
	ok(p.AppendRecords(ctx, "example.com", txt("wildcard"))) // the zone without its last dot
	ok(p.AppendRecords(ctx, "example.com.", txt("wildcard")))
	holds("two stand at one name, and one added twice is one", "apex", "wildcard")
	ok(p.DeleteRecords(ctx, "example.com.", txt("apex")))
	holds("only that one was removed", "wildcard")
	ok(p.DeleteRecords(ctx, "example.com.", txt("not there")))
	ok(p.DeleteRecords(ctx, "example.com.", []libdns.Record{libdns.RR{Name: at, Type: "TXT", Data: "wildcard", TTL: time.Hour}}))
	holds("removed by its full name, whatever its TTL")
	long := strings.Repeat(`\"long; `, 60)
	ok(p.AppendRecords(ctx, "example.com.", txt(long)))
	if got := txtAt(t, addr, at); len(got) != 1 || !strings.HasPrefix(got[0], `\\\"long; `) { // as mdns writes it
		t.Errorf("a long text: got %q", got)
	}
	ok(p.DeleteRecords(ctx, "example.com.", txt(long)))
	holds("a long text was removed")

	other := "b3RoZXJvdGhlcm90aGVyb3RoZXJvdGhlcm90aGVy"
	late := provider("hmac-sha256:acme:" + testSecret)
	late.now = func() time.Time { return time.Now().Add(-time.Hour) }
	for _, c := range []struct {
		why, zone string
		p         *RFC2136
		records   []libdns.Record
		want      string
	}{
		{"a key of another name", "example.com.", provider("hmac-sha256:nobody:" + testSecret), oneTXT, "BADKEY: the server does not know the key nobody (hmac-sha256)"},
		{"another secret", "example.com.", provider("hmac-sha256:acme:" + other), oneTXT, "BADSIG: the server has another secret for the key acme"},
		{"another algorithm", "example.com.", provider("hmac-sha512:acme:" + testSecret), oneTXT, "the key acme (hmac-sha512)"},
		{"a key that may not", "example.com.", provider("hmac-sha512:reader:" + testSecret), oneTXT, "BADKEY: the server does not know the key reader (hmac-sha512), or does not let it update this"},
		{"a type that the key may not", "example.com.", p, []libdns.Record{libdns.RR{Name: "a", Type: "A", Data: "192.0.2.1"}}, "BADKEY: the server does not know the key acme (hmac-sha256), or does not let it update this"},
		{"a clock", "example.com.", late, oneTXT, "BADTIME: the clocks of the two machines differ; the server's says 20"},
		{"a zone that is not there", "example.org.", p, oneTXT, "NOTAUTH: the server is not the primary of this zone"},
		{"a name of another zone", "example.com.", p, []libdns.Record{libdns.TXT{Name: "a.example.org.", Text: "x"}}, "NOTZONE: the record's name is not in the zone"},
	} {
		got, err := c.p.AppendRecords(ctx, c.zone, c.records)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.why, err, c.want)
		}
		if got != nil {
			t.Errorf("%s: got %v as added, want none", c.why, got)
		}
	}
	holds("what was refused is not there")

	stop()
	if _, err := p.AppendRecords(ctx, "example.com.", oneTXT); err == nil || !strings.Contains(err.Error(), addr) {
		t.Errorf("the server is away: got %v, want an error that names it", err)
	}
}

func TestKnotKeyFile(t *testing.T) {
	t.Parallel()
	keymgr, err := exec.LookPath("keymgr")
	if err != nil {
		t.Skip("SKIPPED, KEY FILES OF KNOT ARE NOT TESTED against its keymgr, which is missing. Run: apt-get install knot")
	}
	text, err := exec.Command(keymgr, "-t", "acme.key", "hmac-sha384").Output()
	if err != nil {
		t.Fatal(err)
	}
	p, err := NewRFC2136("127.0.0.1", "", keyFile(t, string(text), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	if got := p.key.String(); got != "acme.key (hmac-sha384)" {
		t.Errorf("got %s", got)
	}
}
