package agent

import (
	"bytes"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/harp-tunnel/harp/messages"
)

// TestH2NeverTwice plays an upstream that resets streams with the code after which net/http tries again.
func TestH2NeverTwice(t *testing.T) {
	checkForwardLeaks(t)
	var heads atomic.Int32
	addr := playUpstream(t, func(_ int, p *peer) {
		io.ReadFull(p.r, make([]byte, len(http2.ClientPreface)))
		fr := http2.NewFramer(p.Conn, p.r)
		fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
		fr.WriteSettings()
		for {
			f, err := fr.ReadFrame()
			if err != nil {
				return
			}
			switch f := f.(type) {
			case *http2.SettingsFrame:
				if !f.IsAck() {
					fr.WriteSettingsAck()
				}
			case *http2.MetaHeadersFrame:
				heads.Add(1)
				fr.WriteRSTStream(f.StreamID, http2.ErrCodeProtocol)
			}
		}
	})
	for _, method := range []string{"POST", "DELETE"} {
		heads.Store(0)
		f := newTestForwarder(t, "h2c://"+addr, ForwardOptions{})
		w := newTunnelWriter()
		w.serve(f, request(t, method, "/", nil, 0))
		if n := heads.Load(); n != 1 || !w.failed || w.code != messages.CancelBroken {
			t.Errorf("%s was sent %d times, failed with %v %q; want once and %v", method, n, w.code, w.reason, messages.CancelBroken)
		}
		time.Sleep(20 * time.Millisecond) // net/http still holds the connection of the attempt that was stopped
		f.Close()
	}
}

// TestH2Malformed plays an upstream whose responses are well framed and mean nothing.
func TestH2Malformed(t *testing.T) {
	for why, fields := range map[string][]hpack.HeaderField{
		"101":                {{Name: ":status", Value: "101"}},
		"status below 100":   {{Name: ":status", Value: "99"}},
		"negative status":    {{Name: ":status", Value: "-5"}},
		"status over 999":    {{Name: ":status", Value: "1000"}},
		"two lengths":        {{Name: ":status", Value: "200"}, {Name: "content-length", Value: "1"}, {Name: "content-length", Value: "2"}},
		"length of nonsense": {{Name: ":status", Value: "200"}, {Name: "content-length", Value: "+1"}},
	} {
		t.Run(why, func(t *testing.T) {
			checkForwardLeaks(t)
			addr := playUpstream(t, func(_ int, p *peer) {
				io.ReadFull(p.r, make([]byte, len(http2.ClientPreface)))
				fr := http2.NewFramer(p.Conn, p.r)
				fr.WriteSettings()
				for {
					f, err := fr.ReadFrame()
					if err != nil {
						return
					}
					if f.Header().Type == http2.FrameHeaders {
						var block bytes.Buffer
						enc := hpack.NewEncoder(&block)
						for _, field := range fields {
							enc.WriteField(field)
						}
						fr.WriteHeaders(http2.HeadersFrameParam{StreamID: f.Header().StreamID, BlockFragment: block.Bytes(), EndHeaders: true})
					}
				}
			})
			w := newTunnelWriter()
			f := newTestForwarder(t, "h2c://"+addr, ForwardOptions{})
			w.serve(f, request(t, "GET", "/", nil, 0))
			if w.status != 0 || w.code != messages.CancelBroken {
				t.Errorf("status %d, failed with %v %q; want %v", w.status, w.code, w.reason, messages.CancelBroken)
			}
			time.Sleep(20 * time.Millisecond) // net/http still holds the stream that it reset
			f.Close()
		})
	}
}
