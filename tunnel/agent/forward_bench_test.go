package agent

import (
	"bytes"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"testing"

	"github.com/harp-tunnel/harp/messages"
)

// benchWriter is a ResponseWriter that costs as little as the tunnel's.
type benchWriter struct {
	header http.Header
	status int
	body   int
}

func (w *benchWriter) Header() http.Header { return w.header }
func (w *benchWriter) WriteHeader(s int)   { w.status = s }
func (w *benchWriter) Flush()              {}
func (w *benchWriter) Write(p []byte) (int, error) {
	w.body += len(p)
	return len(p), nil
}

// benchUpstream answers every request on a connection with the same bytes, and allocates nothing, so that the
// figures are the handler's alone.
func benchUpstream(b testing.TB, size int) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	var answer bytes.Buffer
	(&http.Response{
		StatusCode: 200, ProtoMajor: 1, ProtoMinor: 1, ContentLength: int64(size),
		Header: http.Header{
			"Content-Type": {"text/plain; charset=utf-8"}, "Date": {"Mon, 02 Jan 2006 15:04:05 GMT"},
			"Cache-Control": {"no-cache"}, "Etag": {`"0123456789"`},
		},
		Body: http.NoBody,
	}).Write(&answer)
	head := bytes.Replace(answer.Bytes(), []byte("Content-Length: 0"), []byte("Content-Length: "+itoa(size)), 1)
	full := append(head, bytes.Repeat([]byte("x"), size)...)
	go func() { // ends when l closes
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // ends when the client closes
				defer c.Close()
				buf := make([]byte, 16<<10)
				for n := 0; ; {
					m, err := c.Read(buf[n:])
					if err != nil {
						return
					}
					if n += m; bytes.HasSuffix(buf[:n], []byte("\r\n\r\n")) {
						n = 0
						if _, err := c.Write(full); err != nil {
							return
						}
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}

func itoa(n int) string {
	var b []byte
	for ; n > 0; n /= 10 {
		b = append([]byte{byte('0' + n%10)}, b...)
	}
	return string(b)
}

// benchRequest is a browser's GET as it comes out of the tunnel.
func benchRequest() *http.Request {
	r := httptest.NewRequest("GET", "/some/path?q=1", nil)
	r.Header = http.Header{
		"User-Agent": {"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0 Safari/537.36"},
		"Accept":     {"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}, "Accept-Encoding": {"gzip, deflate, br"},
		"Accept-Language": {"en-US,en;q=0.5"}, "Cookie": {"session=0123456789abcdef"}, "X-Forwarded-For": {"192.0.2.1"},
		"X-Forwarded-Proto": {"https"}, "X-Forwarded-Host": {"example.com"}, "X-Request-Id": {"0123456789abcdef"},
	}
	r.Body, r.ContentLength = http.NoBody, 0
	return r
}

func benchHandler(b *testing.B, h http.Handler, size int) {
	b.ReportAllocs()
	b.SetBytes(int64(size))
	b.RunParallel(func(pb *testing.PB) {
		w := &benchWriter{header: make(http.Header)}
		r := benchRequest().WithContext(b.Context())
		for pb.Next() {
			clear(w.header)
			w.body = 0
			h.ServeHTTP(w, r)
			if w.status != 200 || w.body != size {
				b.Errorf("status %d, %d bytes, want 200 and %d", w.status, w.body, size)
				return
			}
		}
	})
}

// fieldsWriter is a benchWriter that takes fields.
type fieldsWriter struct{ benchWriter }

func (w *fieldsWriter) WriteFields(status int, _ int64, _ []byte) bool {
	w.status = status
	return true
}

// benchFields is benchRequest as tunnel.FieldsHandler gets it.
func benchFields() (*http.Request, messages.Fields) {
	r := benchRequest()
	var b []byte
	for name, values := range r.Header {
		b = messages.AppendField(b, name, values[0])
	}
	r.URL, r.Header = nil, nil
	return r, messages.Fields(b)
}

// TestForwardAllocations holds a keep-alive GET with 1 KiB of answer to its budget: 7 allocations with maps and 5
// without, and a little for the race detector's pools.
func TestForwardAllocations(t *testing.T) {
	f := newTestForwarder(t, benchUpstream(t, 1<<10), ForwardOptions{})
	w := &benchWriter{header: make(http.Header)}
	r := benchRequest().WithContext(t.Context())
	got := testing.AllocsPerRun(200, func() {
		clear(w.header)
		f.ServeHTTP(w, r)
	})
	if got > 9 {
		t.Errorf("%v allocations, want at most 9", got)
	}
	r, fields := benchFields()
	fw := new(fieldsWriter)
	if got := testing.AllocsPerRun(200, func() { f.ServeFields(fw, r, fields) }); got > 6 {
		t.Errorf("%v allocations without maps, want at most 6", got)
	} else {
		t.Logf("%v allocations without maps", got)
	}
	if fw.status != 200 || fw.body == 0 || fw.header != nil {
		t.Errorf("status %d, %d bytes, header %v, want an answer without a map", fw.status, fw.body, fw.header)
	}
}

// BenchmarkForward compares a keep-alive GET through the Forwarder with one through net/http/httputil.
func BenchmarkForward(b *testing.B) {
	for _, c := range []struct {
		name string
		size int
	}{{"1KiB", 1 << 10}, {"64KiB", 64 << 10}, {"1MiB", 1 << 20}} {
		b.Run("Forwarder/"+c.name, func(b *testing.B) {
			f, err := Forward(benchUpstream(b, c.size), ForwardOptions{})
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			benchHandler(b, f, c.size)
		})
		b.Run("Fields/"+c.name, func(b *testing.B) {
			f, err := Forward(benchUpstream(b, c.size), ForwardOptions{})
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			b.ReportAllocs()
			b.SetBytes(int64(c.size))
			b.RunParallel(func(pb *testing.PB) {
				w := new(fieldsWriter)
				r, fields := benchFields()
				for pb.Next() {
					f.ServeFields(w, r, fields)
				}
			})
		})
		b.Run("ReverseProxy/"+c.name, func(b *testing.B) {
			p := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: benchUpstream(b, c.size)})
			t := &http.Transport{MaxIdleConnsPerHost: 128, DisableCompression: true}
			defer t.CloseIdleConnections()
			p.Transport, p.FlushInterval = t, -1
			benchHandler(b, p, c.size)
		})
	}
}
