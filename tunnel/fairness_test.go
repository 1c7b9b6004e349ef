package tunnel

import (
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

// newSlowPair is newPair with a link that brings rate bytes a second to the edge.
func newSlowPair(t *testing.T, rate int, h http.Handler) *pair {
	t.Helper()
	a, b := newMemLink(1)
	a.rate = rate
	return runPair(t, a, b, Config{}, Config{Handler: func(uint32) http.Handler { return h }})
}

// TestClickBesideDownloads makes small requests while downloads keep the link full: each waits for what is in the queues
// of the link, not for the downloads, however many.
func TestClickBesideDownloads(t *testing.T) {
	for _, downloads := range []int{1, 8} {
		synctest.Test(t, func(t *testing.T) {
			const rate = 10 << 20 // bytes a second
			p := newSlowPair(t, rate, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.RequestURI == "/bulk" {
					_, _ = w.Write(make([]byte, 16<<20))
				}
				_, _ = io.WriteString(w, "small")
			}))
			finished := make(chan time.Duration, downloads)
			start := time.Now()
			for range downloads {
				go func() {
					res := p.do(request("GET", "/bulk", nil))
					n, err := io.Copy(io.Discard, res.Body)
					if n != 16<<20+5 || err != nil {
						t.Errorf("download of %d bytes, %v", n, err)
					}
					finished <- time.Since(start)
				}()
			}
			time.Sleep(500 * time.Millisecond)
			// Two batches are under way and one is being written when the head comes; its body goes with it.
			most := time.Second * 3 * bodyBatch / rate
			for range 10 {
				clicked := time.Now()
				if _, got := p.get(request("GET", "/", nil)); got != "small" {
					t.Fatalf("got %q", got)
				}
				if d := time.Since(clicked); d > most {
					t.Errorf("beside %d downloads a click took %v, want at most %v", downloads, d, most)
				}
			}
			var first, last time.Duration
			for i := range downloads {
				if last = <-finished; i == 0 {
					first = last
				}
			}
			if whole := time.Second * time.Duration(downloads) * (16 << 20) / rate; last > whole*11/10 {
				t.Errorf("%d downloads took %v, want about %v: the link was not full", downloads, last, whole)
			}
			if first < last*9/10 {
				t.Errorf("the first download ended after %v, the last after %v: they did not share", first, last)
			}
		})
	}
}

// TestUploadsShare sends bodies the other way at once.
func TestUploadsShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate = 10 << 20
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
		a, b := newMemLink(1)
		b.rate = rate
		p := runPair(t, a, b, Config{}, Config{Handler: func(uint32) http.Handler { return h }})
		start := time.Now()
		finished := make(chan time.Duration, 4)
		for range 4 {
			go func() {
				p.get(request("POST", "/", io.LimitReader(zeros{}, 4<<20)))
				finished <- time.Since(start)
			}()
		}
		var all [4]time.Duration
		for i := range all {
			all[i] = <-finished
		}
		if all[0] < all[3]*9/10 || all[3] > 2*time.Second {
			t.Errorf("uploads ended after %v, want all after about 1.6 s", all)
		}
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// TestLongRoundTripDoesNotCapATransfer moves bytes over a link with 100 ms of round trip that brings 40 MiB a second: the
// window has to grow for that, and soon.
func TestLongRoundTripDoesNotCapATransfer(t *testing.T) {
	const size, rate, half = 200 << 20, 40 << 20, 50 * time.Millisecond
	for _, method := range []string{"GET", "POST"} {
		synctest.Test(t, func(t *testing.T) {
			a, b := newMemLink(1024)
			a.delay, b.delay, a.rate, b.rate = half, half, rate, rate
			p := runPair(t, a, b, Config{}, Config{Handler: func(uint32) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					_, _ = io.Copy(io.Discard, r.Body)
					_, _ = io.Copy(w, io.LimitReader(zeros{}, int64(size)))
				})
			}})
			req := request(method, "/", nil)
			if method == "POST" {
				req = request(method, "/", io.LimitReader(zeros{}, size))
			}
			start := time.Now()
			res := p.do(req)
			if method == "GET" {
				if n, err := io.Copy(io.Discard, res.Body); n != size || err != nil {
					t.Errorf("download of %d bytes, %v", n, err)
				}
			}
			res.Body.Close()
			least := time.Second*size/rate + 2*half
			if d := time.Since(start); d > least*100/95 {
				t.Errorf("%s: 200 MiB took %v, want at most 1/0.95 of %v", method, d, least)
			} else {
				t.Logf("%s: %v of %v", method, d, least)
			}
		})
	}
}
