package dns

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net/netip"
	"sync"
	"time"

	mdns "github.com/miekg/dns"
)

const (
	clientCookie = 8  // bytes
	serverCookie = 16 // bytes: version, three reserved, time, eight of a MAC (RFC 9018, section 4)
	cookieLife   = time.Hour
	cookieSkew   = 5 * time.Minute // into the future
	secretLife   = 24 * time.Hour  // then it is the one before for as long again
)

var errCookie = errors.New("malformed cookie")

// A cookie is what a query's cookie comes to.
type cookie struct {
	reply string // the cookie to answer with, in hexadecimal; empty if the query had none
	known bool   // it came with a good one of this server: the client has its address for its own
}

type cookieSecret [32]byte

// cookies gives and knows DNS cookies (RFC 7873, RFC 9018). The MAC is HMAC-SHA256, cut, and not SipHash, as no other server
// needs to know it; the secret never leaves the process.
type cookies struct {
	mu             sync.Mutex // guards the fields below
	secret, before cookieSecret
	next           time.Time // when secret becomes before
}

func newCookies(now time.Time) *cookies {
	c := new(cookies)
	_, _ = rand.Read(c.secret[:]) // never fails
	_, _ = rand.Read(c.before[:])
	c.next = now.Add(secretLife)
	return c
}

// read reads the cookie of a query by client. The error is errCookie for a length that no cookie has.
func (c *cookies) read(opt *mdns.OPT, client netip.Addr, now time.Time) (cookie, error) {
	for _, o := range opt.Option {
		o, ok := o.(*mdns.EDNS0_COOKIE)
		if !ok {
			continue
		}
		b, err := hex.DecodeString(o.Cookie)
		if err != nil || len(b) < clientCookie || len(b) > clientCookie && len(b) < 16 || len(b) > 40 { // RFC 7873, section 4
			return cookie{}, errCookie
		}
		secret, before := c.secrets(now)
		return cookie{
			reply: hex.EncodeToString(secret.mark(b[:clientCookie], client, uint32(now.Unix()))),
			known: secret.made(b, client, now) || before.made(b, client, now),
		}, nil
	}
	return cookie{}, nil
}

// secrets returns the secret of the time and the one before, whose cookies are still good.
func (c *cookies) secrets(now time.Time) (secret, before cookieSecret) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !now.Before(c.next) {
		c.before = c.secret
		_, _ = rand.Read(c.secret[:])
		c.next = now.Add(secretLife)
	}
	return c.secret, c.before
}

// made reports whether b was made with s for client, not too long ago.
func (s *cookieSecret) made(b []byte, client netip.Addr, now time.Time) bool {
	if len(b) != clientCookie+serverCookie {
		return false
	}
	stamp := binary.BigEndian.Uint32(b[12:])
	age := time.Duration(int32(uint32(now.Unix())-stamp)) * time.Second // RFC 1982 arithmetic
	return age < cookieLife && age > -cookieSkew && hmac.Equal(b, s.mark(b[:clientCookie], client, stamp))
}

// mark returns a client's cookie followed by the server's.
func (s *cookieSecret) mark(client []byte, addr netip.Addr, stamp uint32) []byte {
	b := make([]byte, 0, clientCookie+8+sha256.Size)
	b = append(b, client...)
	b = append(b, 1, 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, stamp)
	h := hmac.New(sha256.New, s[:])
	h.Write(b)
	a := addr.As16()
	h.Write(a[:])
	return h.Sum(b)[:clientCookie+serverCookie]
}
