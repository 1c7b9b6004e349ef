package tls

import (
	"errors"
	"io"
	"net"
	"time"
)

var errUnknownName = errors.New("not a name of this server")

const firstRead = 2 << 10 // bytes: a hello with post-quantum keys fits, and half-open connections are many

// readClientHello reads until the hello is whole, and returns all that was read. The connection's deadline bounds it.
func readClientHello(conn net.Conn) (hello clientHello, read []byte, err error) {
	read = make([]byte, 0, firstRead)
	var parser helloParser
	for {
		if len(read) == cap(read) { // grows with what came, whatever was announced
			read = append(make([]byte, 0, 2*cap(read)), read...)
		}
		n, err := conn.Read(read[len(read):cap(read)])
		read = read[:len(read)+n]
		if n > 0 {
			hello, err := parser.parse(read)
			if !errors.Is(err, errMore) {
				return hello, read, err
			}
			if len(read) > maxClientHello {
				return hello, read, errMalformed
			}
		}
		if err != nil {
			return hello, read, err
		}
	}
}

// A peeked is a connection of which something was read already. It is read from by one goroutine at a time.
type peeked struct {
	net.Conn
	first []byte // what is to be read again
}

func (c *peeked) Read(b []byte) (int, error) {
	if len(c.first) == 0 {
		return c.Conn.Read(b)
	}
	n := copy(b, c.first)
	if c.first = c.first[n:]; len(c.first) == 0 {
		c.first = nil
	}
	return n, nil
}

// NetConn is the connection below, as tls.Conn has it.
func (c *peeked) NetConn() net.Conn { return c.Conn }

// CloseWrite ends what is sent on the connection, and nothing else.
func (c *peeked) CloseWrite() error {
	if conn, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return conn.CloseWrite()
	}
	return c.Conn.Close()
}

// reject tells the client why, and closes the connection.
func (l *Listener) reject(conn net.Conn, err error, read []byte) {
	defer conn.Close()
	answer := ""
	switch {
	case errors.Is(err, errUnknownName):
		answer = alert(112) // unrecognized_name (RFC 6066, section 3)
	case errors.Is(err, errMalformed):
		answer = alert(50) // decode_error (RFC 8446, section 6.2)
	case errors.Is(err, errNotTLS) && startsLikeHTTP(read):
		answer = "HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\nthis port speaks HTTPS\n"
	default:
		return
	}
	_ = conn.SetDeadline(time.Now().Add(alertTime))
	if _, err := io.WriteString(conn, answer); err != nil {
		return
	}
	// To close on unread bytes resets the connection, and the client would never see the answer.
	if c, ok := conn.(interface{ CloseWrite() error }); ok && c.CloseWrite() == nil {
		_, _ = io.CopyN(io.Discard, conn, maxClientHello)
	}
}

// alert is a fatal alert in a plain record (RFC 8446, section 6).
func alert(code byte) string { return string([]byte{21, 3, 3, 0, 2, 2, code}) }

func startsLikeHTTP(b []byte) bool {
	for _, c := range b[:min(len(b), 3)] {
		if c < 'A' || c > 'Z' {
			return false
		}
	}
	return len(b) > 0
}
