package agent

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
)

// readFuzzed reads a whole response as an h1Exchange does.
func readFuzzed(src io.Reader, method string, limit int) (h *responseHead, header, trailer http.Header, body []byte, fr responseFraming, rest []byte, err error) {
	in := &upstreamInbox{src: src, lent: lentBuffer{from: new(upstreamBuffers)}}
	h = new(responseHead)
	section, err := in.section(limit)
	if err == nil {
		err = h.parse(section)
	}
	if err == nil {
		fr, err = h.frame(method)
	}
	if err != nil {
		return
	}
	header, trailer = make(http.Header), make(http.Header)
	h.copyTo(header, false)
	status, minor := h.status, h.minor
	b := responseBody{kind: fr.kind, remain: fr.length}
	for {
		piece, done, err2 := b.take(in)
		body = append(body, piece...)
		if err = err2; err == nil && !done && len(piece) == 0 {
			done, err = b.more(in)
		}
		if err != nil {
			return
		}
		if done {
			break
		}
	}
	if fr.kind == framingChunked {
		if section, err = in.section(limit); err == nil {
			err = h.parseFields(section)
		}
		h.copyTo(trailer, true)
	}
	h.status, h.minor = status, minor
	return h, header, trailer, body, fr, bytes.Clone(in.unread()), err
}

// FuzzUpstreamResponse checks that a response that both HARP and net/http take means the same to both, and that it
// does not depend on how the bytes are cut.
func FuzzUpstreamResponse(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n00\r\nX: y\r\n\r\nHTTP/1.1",
		"HTTP/1.0 200\nA: b\n c\nA:\td \n\nuntil close",
		"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\nConnection: a, close\r\nA: b\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\nhello",
		"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nbytes",
	} {
		f.Add([]byte(s), false)
	}
	f.Fuzz(func(t *testing.T, data []byte, head bool) {
		method := "GET"
		if head {
			method = "HEAD"
		}
		h, header, trailer, body, fr, rest, err := readFuzzed(bytes.NewReader(data), method, 1<<16)
		_, header1, trailer1, body1, fr1, rest1, err1 := readFuzzed(iotest.OneByteReader(bytes.NewReader(data)), method, 1<<16)
		if (err == nil) != (err1 == nil) || !reflect.DeepEqual(header, header1) || !bytes.Equal(body, body1) || fr != fr1 {
			t.Fatalf("cut in bytes it reads differently: %v, %q, %q; %v, %q, %q", err, header, body, err1, header1, body1)
		}
		if err == nil && (!reflect.DeepEqual(trailer, trailer1) || !bytes.HasPrefix(rest, rest1)) {
			t.Fatalf("cut in bytes the end reads differently: %q, %q", trailer, trailer1)
		}
		checkFuzzedFields(t, data, method)
		if err != nil || h.status < 200 || h.minor == 0 && fr.kind == framingChunked {
			return // net/http ignores Transfer-Encoding in HTTP/1.0
		}
		for name, values := range header {
			if !validToken(name) || strings.ContainsAny(strings.Join(values, ""), "\r\n\x00") {
				t.Fatalf("field %q: %q was let through", name, values)
			}
		}
		compareWithNetHTTP(t, data, method, h.status, header, trailer, body)
	})
}

// checkFuzzedFields checks the head at the beginning of data as TestFieldsOfResponse does.
func checkFuzzedFields(t *testing.T, data []byte, method string) {
	in := &upstreamInbox{src: bytes.NewReader(data), lent: lentBuffer{from: new(upstreamBuffers)}}
	h := new(responseHead)
	section, err := in.section(1 << 16)
	if err == nil {
		err = h.parse(section)
	}
	if err == nil {
		_, err = h.frame(method)
	}
	if err == nil && h.status >= 200 {
		checkFields(t, h)
	}
}

func compareWithNetHTTP(t *testing.T, data []byte, method string, status int, header, trailer http.Header, body []byte) {
	res, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(data)), &http.Request{Method: method})
	if err != nil {
		return
	}
	want, err := io.ReadAll(res.Body)
	if err != nil {
		return
	}
	if res.StatusCode != status || !bytes.Equal(want, body) {
		t.Fatalf("status %d, body %q; net/http reads %d, %q", status, body, res.StatusCode, want)
	}
	for name, values := range header {
		switch name {
		case "Content-Length", "Transfer-Encoding", "Trailer":
			continue // net/http keeps these elsewhere
		}
		if len(res.Header[name]) != len(values) {
			t.Fatalf("field %s is %q; net/http reads %q", name, values, res.Header[name])
		}
	}
	named := bytes.Contains(bytes.ToLower(data), []byte("connection")) // and may have taken fields out
	for name := range res.Header {
		if _, ok := header[name]; !ok && !named && !hopByHop(name) && name != "Content-Length" {
			t.Fatalf("field %s is missing, which net/http reads as %q", name, res.Header[name])
		}
	}
	for name, values := range res.Trailer {
		if len(values) > 0 && !reflect.DeepEqual(trailer[name], values) {
			t.Fatalf("trailer %s is %q; net/http reads %q", name, trailer[name], values)
		}
	}
}
