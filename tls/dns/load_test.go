package dns

import (
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
)

// TestLoad asks 10,000 questions a second, for 10 seconds, or 3 with -short: none is lost, nothing grows. With the race
// detector the machine does a fifth of that.
func TestLoad(t *testing.T) {
	s, addr := start(t, func(o *Options) { o.ResponseRate = 0 }) // the clients show cookies, as resolvers do
	const clients, tick = 10, 10 * time.Millisecond
	perTick, ticks := 10, 1000 // each client 10 questions every 10 ms
	if raceEnabled {
		perTick = 2
	}
	if testing.Short() {
		ticks = 300
	}
	first := new(mdns.Msg).SetQuestion("tunnels.example.com.", mdns.TypeA)
	setCookie(first, "0011223344556677")
	cookie := ask(t, "udp", addr, first).IsEdns0().Option[0].(*mdns.EDNS0_COOKIE).Cookie
	question := new(mdns.Msg).SetQuestion("x.tunnels.example.com.", mdns.TypeA)
	setCookie(question, cookie)
	query, err := question.Pack()
	if err != nil {
		t.Fatal(err)
	}
	goroutines, before := runtime.NumGoroutine(), heap()
	var answers atomic.Int64
	var wg sync.WaitGroup
	began := time.Now()
	for range clients {
		conn, err := net.Dial("udp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.(*net.UDPConn).SetReadBuffer(1 << 20)
		wg.Go(func() {
			b := make([]byte, 2048)
			for n := 0; n < perTick*ticks; n++ {
				_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
				if k, err := conn.Read(b); err != nil || k < 12 || b[3]&0xf != 0 || b[7] != 1 {
					t.Errorf("answer %d: %v, % x", n, err, b[:min(k, 12)])
					return
				}
				answers.Add(1)
			}
		})
		wg.Go(func() {
			every := time.NewTicker(tick)
			defer every.Stop()
			for range ticks {
				for range perTick {
					_, _ = conn.Write(query)
				}
				<-every.C
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	t.Logf("%d answers in %v, %.0f a second, %d KiB of heap before and %d after", answers.Load(), took.Round(time.Millisecond),
		float64(answers.Load())/took.Seconds(), before>>10, heap()>>10)
	if want := int64(clients * perTick * ticks); answers.Load() != want || s.Stats().Truncated+s.Stats().Dropped > 0 {
		t.Errorf("%d of %d answered, %+v", answers.Load(), want, s.Stats())
	}
	if after := heap(); after > before+8<<20 {
		t.Errorf("the heap grew from %d to %d bytes", before, after)
	}
	if n := runtime.NumGoroutine(); n > goroutines+50 {
		t.Errorf("goroutines grew from %d to %d", goroutines, n)
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func BenchmarkServeDNS(b *testing.B) {
	s, err := New(Options{Domain: "tunnels.example.com", ResponseRate: -1})
	if err != nil {
		b.Fatal(err)
	}
	w := &sink{}
	r := new(mdns.Msg).SetQuestion("x.tunnels.example.com.", mdns.TypeA)
	setCookie(r, "0011223344556677")
	b.ReportAllocs()
	for b.Loop() {
		s.ServeDNS(w, r)
	}
}
