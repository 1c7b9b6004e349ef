package tunnel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/harp-tunnel/harp/messages"
)

// TestSoak has many visitors do everything at once for a while, over a real WebSocket, and break off whenever they like.
// What arrives has to be right, and in the end nothing may be left.
func TestSoak(t *testing.T) {
	const visitors = 64
	lasts := 3 * time.Second
	if testing.Short() {
		lasts = 300 * time.Millisecond
	}
	edge, agent := newLoopbackPair(t, http.HandlerFunc(soakHandler))
	warm, err := edge.RoundTrip(1, request("GET", "/download/10", nil))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, warm.Body)
	goroutines, heap := runtime.NumGoroutine(), heapInUse()
	ctx, stop := context.WithTimeout(t.Context(), lasts)
	defer stop()
	var whole, broken atomic.Int64
	var wg sync.WaitGroup
	for n := range visitors {
		wg.Go(func() {
			v := &soakVisitor{t: t, edge: edge, rnd: rand.New(rand.NewPCG(7, uint64(n)))}
			for ctx.Err() == nil {
				if v.visit() {
					whole.Add(1)
				} else {
					broken.Add(1)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d exchanges were whole, %d were broken off", whole.Load(), broken.Load())
	if whole.Load() < visitors || broken.Load() < visitors {
		t.Error("that is too few to say anything")
	}
	for range 200 {
		if edge.Streams()+agent.Streams() == 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if a, b := edge.Streams(), agent.Streams(); a != 0 || b != 0 {
		t.Errorf("%d streams are left at the edge, %d at the agent", a, b)
	}
	wantGoroutines(t, goroutines)
	for _, s := range []*Session{edge, agent} {
		if n := s.grown.Load(); n != 0 {
			t.Errorf("%d bytes of the window budget are missing", n)
		}
		if n := s.out.held(); n > 64<<10 {
			t.Errorf("an idle outbox holds %d bytes", n)
		}
		if n := len(s.out.waiting); n != 0 {
			t.Errorf("%d offers wait in an idle outbox", n)
		}
	}
	if now := heapInUse(); now > heap+16<<20 {
		t.Errorf("%d bytes of heap are in use, %d were before", now, heap)
	}
	if err := edge.Err(); err != nil {
		t.Errorf("the link has died: %v", err)
	}
}

// heapInUse is what is left after a garbage collection, pools included.
func heapInUse() uint64 {
	runtime.GC()
	runtime.GC() // the second one empties the pools
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse
}

func soakHandler(w http.ResponseWriter, r *http.Request) {
	var kind string
	var size int
	_, _ = fmt.Sscanf(strings.ReplaceAll(r.URL.Path, "/", " "), "%s %d", &kind, &size)
	switch kind {
	case "echo":
		_, _ = io.Copy(w, r.Body)
	case "download":
		_, _ = w.Write(pattern(size, uint32(size)))
	case "trickle":
		for p := pattern(size, uint32(size)); len(p) > 0; {
			n := min(len(p), 1+size/10)
			_, _ = w.Write(p[:n])
			p = p[n:]
			_ = http.NewResponseController(w).Flush()
		}
	case "upload":
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n, err)
	case "early":
		w.WriteHeader(413)
	case "abort":
		_, _ = w.Write(pattern(size, 1))
		panic(http.ErrAbortHandler)
	case "upgrade":
		w.WriteHeader(101)
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer c.Close()
		_, _ = io.Copy(c, c)
	}
}

// A soakVisitor makes one request after the other.
type soakVisitor struct {
	t    *testing.T
	edge *Session
	rnd  *rand.Rand
}

// visit makes one request of any kind, and reports whether it came to a good end.
func (v *soakVisitor) visit() bool {
	ctx, cancel := context.WithCancel(v.t.Context())
	defer cancel()
	if v.rnd.IntN(4) == 0 {
		time.AfterFunc(time.Duration(v.rnd.IntN(3000))*time.Microsecond, cancel)
	}
	kind := []string{"echo", "download", "trickle", "upload", "early", "abort", "upgrade"}[v.rnd.IntN(7)]
	size := 1 + v.rnd.IntN(1<<v.rnd.IntN(20))
	req := request("GET", fmt.Sprintf("/%s/%d", kind, size), nil).WithContext(ctx)
	sent := pattern(size, uint32(size))
	switch kind {
	case "echo", "upload", "early":
		req.Method, req.Body = "POST", io.NopCloser(bytes.NewReader(sent))
	case "upgrade":
		req.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"own"}}
	}
	res, err := v.edge.RoundTrip(1, req)
	if err != nil {
		v.accept(kind, err, ctx)
		return false
	}
	defer res.Body.Close()
	if kind == "upgrade" {
		return v.upgrade(ctx, res.Body.(*UpgradedConn), sent)
	}
	if v.rnd.IntN(8) == 0 {
		_, _ = io.CopyN(io.Discard, res.Body, int64(size/2))
		return false // and close
	}
	got, err := io.ReadAll(res.Body)
	switch {
	case err != nil:
		v.accept(kind, err, ctx)
		return false
	case kind == "abort":
		v.t.Errorf("a response that was broken off ended well")
	case kind == "upload" && string(got) != fmt.Sprint(size, " <nil>"):
		v.t.Errorf("%d bytes were sent, the service says %q", size, got)
	case (kind == "echo" || kind == "download" || kind == "trickle") && !bytes.Equal(got, sent):
		v.t.Errorf("%s of %d bytes brought %d others", kind, size, len(got))
	}
	return true
}

// accept wants an error to be one of those that the visitor or the handler has asked for.
func (v *soakVisitor) accept(kind string, err error, ctx context.Context) {
	var cancelled *CancelError
	switch {
	case ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, errCancelled)):
	case errors.As(err, &cancelled) && kind == "abort" && cancelled.Code == messages.CancelAborted:
	default:
		v.t.Errorf("%s failed: %v", kind, err)
	}
}

func (v *soakVisitor) upgrade(ctx context.Context, c *UpgradedConn, sent []byte) bool {
	go func() { // ends with the connection
		_, _ = c.Write(sent)
		_ = c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil {
		v.accept("upgrade", err, ctx)
		return false
	}
	if !bytes.Equal(got, sent) {
		v.t.Errorf("upgraded connection brought %d others of %d bytes", len(got), len(sent))
	}
	return true
}
