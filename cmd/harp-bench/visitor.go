package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// A target is how visitors reach what is measured. It is set once, and any goroutine may read it.
type target struct {
	addr  string // to dial
	host  string // in the Host field
	roots string // file with the certificates to trust; empty means plain HTTP
}

// A visitor is one keep-alive HTTP/1.1 connection, and as little code around it as will do: it shares the processors
// with what is measured.
type visitor struct {
	conn net.Conn
	in   *bufio.Reader
	stop func() bool // ends the watch over ctx
}

// visit connects. The connection is closed when ctx ends, by close, or a transferLimit later.
func (t target) visit(ctx context.Context) (*visitor, error) {
	var trust *tls.Config
	if t.roots != "" {
		var err error
		if trust, err = trustFile(t.roots); err != nil {
			return nil, err
		}
		trust.ServerName, _, _ = strings.Cut(t.host, ":")
		trust.NextProtos = []string{"http/1.1"}
	}
	dialer := &net.Dialer{Timeout: patience}
	conn, err := dialer.DialContext(ctx, "tcp", t.addr)
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(transferLimit)); err != nil {
		conn.Close()
		return nil, err
	}
	if trust != nil {
		secure := tls.Client(conn, trust)
		if err := secure.HandshakeContext(ctx); err != nil {
			conn.Close()
			return nil, fmt.Errorf("TLS with %s: %w", t.addr, err)
		}
		conn = secure
	}
	v := &visitor{conn: conn, in: bufio.NewReader(conn)}
	v.stop = context.AfterFunc(ctx, func() { _ = conn.Close() })
	return v, nil
}

// transferLimit is how long one connection may last: longer than any load, and not for ever.
const transferLimit = 10 * time.Minute

func (v *visitor) close() {
	v.stop()
	_ = v.conn.Close()
}

// request returns the head of a request; fields are whole lines.
func (t target) request(method, path string, fields ...string) []byte {
	head := method + " " + path + " HTTP/1.1\r\nHost: " + t.host + "\r\n"
	for _, f := range fields {
		head += f + "\r\n"
	}
	return []byte(head + "\r\n")
}

var contentLength = []byte("Content-Length:")

// head reads the head of an answer and returns how many bytes follow. Any status but 200 is an error, and so is an
// answer that does not say its length.
func (v *visitor) head() (length int64, err error) {
	line, err := v.in.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	if !bytes.HasPrefix(line, []byte("HTTP/1.1 200 ")) {
		return 0, fmt.Errorf("the answer is %q", bytes.TrimSpace(line))
	}
	length = -1
	for {
		line, err := v.in.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		if len(line) <= 2 {
			break
		}
		if len(line) > len(contentLength) && bytes.EqualFold(line[:len(contentLength)], contentLength) {
			if length, err = strconv.ParseInt(string(bytes.TrimSpace(line[len(contentLength):])), 10, 64); err != nil {
				return 0, fmt.Errorf("the answer's length: %w", err)
			}
		}
	}
	if length < 0 {
		return 0, errors.New("the answer does not say its length")
	}
	return length, nil
}

// page sends a request for the small page and reads the answer.
func (v *visitor) page(request []byte) error {
	if _, err := v.conn.Write(request); err != nil {
		return err
	}
	length, err := v.head()
	if err != nil {
		return err
	}
	if length != pageSize {
		return fmt.Errorf("the answer has %d bytes, not %d", length, pageSize)
	}
	_, err = v.in.Discard(pageSize)
	return err
}

// body reads n bytes of an answer through buf.
func (v *visitor) body(n int64, buf []byte) error {
	for n > 0 {
		k, err := v.in.Read(buf[:min(n, int64(len(buf)))])
		n -= int64(k)
		if err != nil && n > 0 {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("%d bytes before the end: %w", n, err)
		}
	}
	return nil
}
