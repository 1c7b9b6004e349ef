package server

import (
	"fmt"
	"math"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"
)

func TestLimiterBurstThenRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newLimiterSet[string](2, 3, 0)
		for i := range 3 {
			if !s.allow("a") {
				t.Errorf("request %d of a burst of 3 was refused", i+1)
			}
		}
		if s.allow("a") {
			t.Error("a fourth request passed a burst of 3")
		}
		if !s.allow("b") {
			t.Error("b was refused for what a did")
		}
		time.Sleep(500 * time.Millisecond)
		if !s.allow("a") || s.allow("a") {
			t.Error("after half a second at 2/s exactly one request should pass")
		}
	})
}

func TestLimiterOff(t *testing.T) {
	for _, perSecond := range []float64{0, -1, math.NaN()} {
		s := newLimiterSet[string](perSecond, 1, 0)
		for range 10 {
			if !s.allow("a") {
				t.Fatalf("%v requests per second means no limit", perSecond)
			}
		}
	}
	for perSecond, want := range map[float64]int{0.1: 1, 1: 1, 2.5: 3, math.Inf(1): 1 << 30} {
		if got := newLimiterSet[string](perSecond, 0, 0).burst; got != want {
			t.Errorf("burst of 0 at %v/s counts as %d, want %d", perSecond, got, want)
		}
	}
}

func TestLimiterForgetsIdleKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newLimiterSet[int](10, 10, 2000)
		for i := range 500 {
			s.allow(i)
		}
		time.Sleep(10 * time.Second) // all are full again, but may well come back
		s.allow(1000)
		if got := len(s.entries); got != 501 {
			t.Errorf("%d entries: none is idle yet, so 501 should be there", got)
		}
		time.Sleep(time.Minute)
		for i := range 500 {
			s.allow(2000 + i)
		}
		if got := len(s.entries); got > 501 || got != len(s.byKey) {
			t.Errorf("%d entries and %d keys: the 500 idle ones should have gone", got, len(s.byKey))
		}
	})
}

func TestLimiterPrefersFullBucketsWhenItIsFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newLimiterSet[string](1, 5, 2)
		s.allow("idle")
		time.Sleep(time.Second)
		s.allow("busy")
		s.allow("new")
		if s.byKey["idle"] != nil || s.byKey["busy"] == nil || s.byKey["new"] == nil {
			t.Errorf("the full bucket of idle should have gone, not that of busy: %v", s.byKey)
		}
	})
}

func TestLimiterIsBoundedAndKeepsDrainedBuckets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const max = 100
		s := newLimiterSet[int](0.001, 10, max)
		for range 20 {
			s.allow(-1)
		}
		for i := range 10 * max { // each leaves a bucket that is neither full nor as empty as that of -1
			if !s.allow(i) {
				t.Fatalf("new key %d was refused: a full table must not lock newcomers out", i)
			}
			if len(s.entries) > max || len(s.byKey) != len(s.entries) {
				t.Fatalf("%d entries, %d keys: want at most %d, and as many of both", len(s.entries), len(s.byKey), max)
			}
		}
		if s.allow(-1) {
			t.Error("other keys pushed a drained bucket out and so filled it")
		}
	})
}

func TestLimiterDoesNotPinTheRequest(t *testing.T) {
	s := newLimiterSet[string](1, 1, 0)
	host := "a whole request head with a host"[len("a whole request head with a "):]
	s.allow(host)
	for key, l := range s.byKey {
		if unsafe.StringData(key) == unsafe.StringData(host) || unsafe.StringData(l.key) == unsafe.StringData(host) {
			t.Error("the set keeps the caller's string, which may be a slice of a whole request head")
		}
	}
}

func TestLimiterAllocatesNothingOnHit(t *testing.T) {
	hosts, addrs := newLimiterSet[string](1e9, 1e9, 0), newLimiterSet[netip.Addr](1e9, 1e9, 0)
	addr := netip.MustParseAddr("2001:db8::1")
	if n := testing.AllocsPerRun(100, func() {
		hosts.allow("host")
		addrs.allow(visitorKey(addr))
	}); n != 0 {
		t.Errorf("%v allocations for two hits, want none", n)
	}
}

func TestLimiterInParallel(t *testing.T) {
	s := newLimiterSet[int](0.001, 50, 10)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 1000 {
				s.allow((i + g) % 20)
			}
		})
	}
	wg.Wait()
	if len(s.entries) > 10 || len(s.byKey) != len(s.entries) {
		t.Errorf("%d entries, %d keys, want at most 10", len(s.entries), len(s.byKey))
	}
}

func TestVisitorKey(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.1": "192.0.2.1", "::ffff:192.0.2.1": "192.0.2.1",
		"2001:db8:1:2:3:4:5:6": "2001:db8:1:2::", "2001:db8:1:2::": "2001:db8:1:2::", "fe80::1%eth0": "fe80::",
	} {
		if got := visitorKey(netip.MustParseAddr(in)).String(); got != want {
			t.Errorf("visitorKey(%s) = %s, want %s", in, got, want)
		}
	}
	if got := visitorKey(netip.Addr{}); got.IsValid() {
		t.Errorf("visitorKey of the zero Addr is %v", got)
	}
}

func BenchmarkLimiterHit(b *testing.B) {
	s := newLimiterSet[string](1e9, 1e9, 0)
	keys := make([]string, 1024)
	for i := range keys {
		keys[i] = fmt.Sprintf("host-%d.example.com", i)
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			s.allow(keys[i%len(keys)])
		}
	})
}

func BenchmarkLimiterNewKeyInFullTable(b *testing.B) {
	s := newLimiterSet[int](0.001, 10, 100_000)
	for i := range 100_000 {
		s.allow(-i - 1)
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		s.allow(i)
		i++
	}
}
