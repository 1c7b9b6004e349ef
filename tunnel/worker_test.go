package tunnel

import (
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestWorkersRest: a handler runs on a goroutine that another has left, if there is one, and none stays that is not needed.
func TestWorkersRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		p := newPair(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/wait":
				<-release
			case "/exit":
				runtime.Goexit()
			}
		}))
		ask := func(path string) {
			res, err := p.edge.RoundTrip(1, httptest.NewRequest("GET", path, nil))
			if err == nil {
				res.Body.Close()
			}
		}
		wants := func(why string, want int) {
			t.Helper()
			synctest.Wait()
			p.agent.mu.Lock()
			defer p.agent.mu.Unlock()
			if got := len(p.agent.resting.idle); got != want {
				t.Errorf("%s: %d workers rest, want %d", why, got, want)
			}
			if p.agent.running != 0 {
				t.Errorf("%s: %d handlers are said to run", why, p.agent.running)
			}
		}
		together := func(n int) {
			var wg sync.WaitGroup
			for range n {
				wg.Go(func() { ask("/wait") })
			}
			synctest.Wait()
			close(release)
			wg.Wait()
			release = make(chan struct{})
		}
		wants("before the first request", 0)
		for range 3 {
			ask("/")
			wants("after one request", 1)
		}
		together(5)
		wants("after five at once", 5)
		for range 5 {
			time.Sleep(workerRest / 2)
			ask("/")
		}
		wants("when one was enough for a while", 1)
		ask("/exit")
		wants("after a handler that ended its goroutine", 0)
		together(keptWorkers + 6)
		wants("after many at once", keptWorkers)
		time.Sleep(2 * workerRest)
		wants("after silence", 0)
		ask("/") // whose worker ends with the link
	})
}
