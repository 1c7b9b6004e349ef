package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// A field is one line of a head as it came over the wire, without the white space around its value.
type field struct{ Name, Value string }

// A head is a start line and the fields below it, in the order in which they came.
type head struct {
	Line   string
	Fields []field
}

// values returns every value of a field, in order; names compare without case.
func (h head) values(name string) []string { return fieldValues(h.Fields, name) }

// get returns the first value of a field, or "".
func (h head) get(name string) string {
	if v := h.values(name); len(v) > 0 {
		return v[0]
	}
	return ""
}

func (h head) has(name string) bool { return len(h.values(name)) > 0 }

// status returns the status of a response head; 0 means that the start line is no status line.
func (h head) status() int {
	proto, rest, _ := strings.Cut(h.Line, " ")
	code, _, _ := strings.Cut(rest, " ")
	n, err := strconv.Atoi(code)
	if err != nil || len(code) != 3 || !strings.HasPrefix(proto, "HTTP/1.") {
		return 0
	}
	return n
}

// method and target return the first two words of a request line.
func (h head) method() string { m, _, _ := strings.Cut(h.Line, " "); return m }

func (h head) target() string {
	_, rest, _ := strings.Cut(h.Line, " ")
	if i := strings.LastIndexByte(rest, ' '); i >= 0 {
		return rest[:i]
	}
	return ""
}

func fieldValues(fields []field, name string) []string {
	var v []string
	for _, f := range fields {
		if strings.EqualFold(f.Name, name) {
			v = append(v, f.Value)
		}
	}
	return v
}

// readHead reads one HTTP/1 head and is stricter than a server has to be: what a proxy sends must have
// CRLF line ends, no folded lines and no space before a colon (RFC 9112 sections 2.2, 5.1 and 5.2).
// The error is io.EOF only if not a single byte came.
func readHead(br *bufio.Reader) (head, error) {
	line, err := readLine(br)
	if err != nil {
		return head{}, err
	}
	if line == "" {
		return head{}, errors.New("empty line in place of a start line")
	}
	h := head{Line: line}
	h.Fields, err = readFields(br)
	return h, err
}

func readFields(br *bufio.Reader) ([]field, error) {
	var fields []field
	for {
		line, err := readLine(br)
		if err != nil {
			return fields, noEOF(err)
		}
		if line == "" {
			return fields, nil
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok || name == "" || strings.ContainsAny(name, " \t\x00") {
			return fields, fmt.Errorf("malformed field line %q", line)
		}
		fields = append(fields, field{name, strings.Trim(value, " \t")})
	}
}

func readLine(br *bufio.Reader) (string, error) {
	line, err := br.ReadString('\n')
	if err != nil {
		if line != "" {
			err = noEOF(err)
		}
		return line, err
	}
	text, ok := strings.CutSuffix(line, "\r\n")
	if !ok || strings.ContainsAny(text, "\r\x00") {
		return line, fmt.Errorf("line %q does not end in CRLF alone", line)
	}
	return text, nil
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// A body reads one message body; io.EOF means a clean end and nothing else does.
type body struct {
	br      *bufio.Reader
	framing string // "none", "sized", "chunked" or "close"
	left    int64  // bytes to come of the body ("sized") or of the current chunk ("chunked")
	inChunk bool
	err     error

	Trailers []field // set once Read returned io.EOF
}

// bodyOf returns the body that follows a head, by the one unambiguous framing that RFC 9112 section 6.3
// allows a proxy to send. method is that of the request; a request's own body has method "".
func bodyOf(br *bufio.Reader, h head, method string) (*body, error) {
	b := &body{br: br, framing: "none"}
	status := h.status()
	if status != 0 && (method == "HEAD" || status < 200 || status == 204 || status == 304) {
		return b, nil
	}
	te, cl := h.values("Transfer-Encoding"), h.values("Content-Length")
	switch {
	case len(te) > 1, len(cl) > 1, len(te) > 0 && len(cl) > 0:
		return nil, fmt.Errorf("ambiguous framing: Transfer-Encoding %q, Content-Length %q", te, cl)
	case len(te) == 1:
		if te[0] != "chunked" {
			return nil, fmt.Errorf("framing is not plainly chunked: Transfer-Encoding %q", te[0])
		}
		b.framing = "chunked"
	case len(cl) == 1:
		n, err := strconv.ParseUint(cl[0], 10, 62)
		if err != nil {
			return nil, fmt.Errorf("Content-Length %q is not a number", cl[0])
		}
		b.framing, b.left = "sized", int64(n)
	case status != 0:
		b.framing = "close"
	}
	return b, nil
}

func (b *body) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	n, err := b.read(p)
	b.err = err
	return n, err
}

func (b *body) read(p []byte) (int, error) {
	switch b.framing {
	case "none":
		return 0, io.EOF
	case "close":
		return b.br.Read(p)
	case "sized":
		if b.left == 0 {
			return 0, io.EOF
		}
	case "chunked":
		if b.left == 0 {
			if err := b.nextChunk(); err != nil {
				return 0, err
			}
		}
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.br.Read(p)
	b.left -= int64(n)
	return n, noEOF(err)
}

// nextChunk reads up to the next chunk's data; io.EOF means that the last chunk and the trailers were read.
func (b *body) nextChunk() error {
	if b.inChunk {
		if line, err := readLine(b.br); err != nil || line != "" {
			return fmt.Errorf("chunk does not end in CRLF: %q, %w", line, noEOF(err))
		}
	}
	line, err := readLine(b.br)
	if err != nil {
		return noEOF(err)
	}
	size, err := strconv.ParseUint(line, 16, 62)
	if err != nil {
		return fmt.Errorf("bad chunk size %q", line)
	}
	b.inChunk, b.left = true, int64(size)
	if size > 0 {
		return nil
	}
	if b.Trailers, err = readFields(b.br); err != nil {
		return err
	}
	return io.EOF
}

// A message is one HTTP/1 message read to its end. Err is nil after a clean end; anything else is a broken
// transfer, and Body then holds what came before it broke.
type message struct {
	head
	Body     []byte
	Framing  string // see body
	Trailers []field
	Err      error
}

// readMessage reads a request (method "") or the response to a request of that method.
// Before the first byte of a head, Err is io.EOF if the peer closed.
func readMessage(br *bufio.Reader, method string) message {
	h, err := readHead(br)
	if err != nil {
		return message{head: h, Err: err}
	}
	return readRest(br, h, method)
}

// readRest reads the body that follows a head.
func readRest(br *bufio.Reader, h head, method string) message {
	m := message{head: h}
	b, err := bodyOf(br, h, method)
	if err != nil {
		m.Err = err
		return m
	}
	m.Framing = b.framing
	m.Body, m.Err = io.ReadAll(b)
	m.Trailers = b.Trailers
	return m
}

// chunk returns s as one chunk; "" gives the last chunk and the end of the message.
func chunk[T string | []byte](s T) string {
	if len(s) == 0 {
		return "0\r\n\r\n"
	}
	return fmt.Sprintf("%x\r\n%s\r\n", len(s), s)
}

// pattern returns n bytes in which no two places look alike, so that lost, doubled or swapped pieces show.
func pattern(n int) []byte {
	b := make([]byte, 0, n+8)
	for i := 0; len(b) < n; i++ {
		b = append(b, byte(i), byte(i>>8), byte(i>>16), byte(i*131>>3))
	}
	return b[:n]
}

// sameBytes returns "" if the two are equal, else where they part; bodies are too long to print.
func sameBytes(got, want []byte) string {
	if bytes.Equal(got, want) {
		return ""
	}
	i := 0
	for i < len(got) && i < len(want) && got[i] == want[i] {
		i++
	}
	return fmt.Sprintf("%d bytes in place of %d, first difference at %d", len(got), len(want), i)
}
