package dns

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net/netip"
	"time"

	mdns "github.com/miekg/dns"
)

const (
	clientCookie = 8  // bytes
	serverCookie = 16 // bytes: version, three reserved, time, eight of a MAC (RFC 9018, section 4)
	cookieLife   = time.Hour
	cookieSkew   = 5 * time.Minute // into the future
)

var errCookie = errors.New("malformed cookie")

// cookies gives and knows DNS cookies (RFC 7873, RFC 9018): a client that shows one has its own address. The secret lives
// as long as the process. The MAC is HMAC-SHA256, cut, as no other server needs to know it.
type cookies struct{ secret [32]byte }

func newCookies() *cookies {
	c := new(cookies)
	_, _ = rand.Read(c.secret[:]) // never fails
	return c
}

// answer returns the cookie to answer opt with, in hexadecimal, empty if it has none. known says that it came with a good
// one of this server.
func (c *cookies) answer(opt *mdns.OPT, client netip.Addr) (cookie string, known bool, err error) {
	for _, o := range opt.Option {
		o, ok := o.(*mdns.EDNS0_COOKIE)
		if !ok {
			continue
		}
		b, err := hex.DecodeString(o.Cookie)
		if err != nil || len(b) < clientCookie || len(b) > clientCookie && len(b) < 16 || len(b) > 40 { // RFC 7873, section 4
			return "", false, errCookie
		}
		now := time.Now()
		known = c.valid(b, client, now)
		return hex.EncodeToString(c.make(b[:clientCookie], client, uint32(now.Unix()))), known, nil
	}
	return "", false, nil
}

func (c *cookies) valid(b []byte, client netip.Addr, now time.Time) bool {
	if len(b) != clientCookie+serverCookie {
		return false
	}
	stamp := binary.BigEndian.Uint32(b[12:])
	age := time.Duration(int32(uint32(now.Unix())-stamp)) * time.Second // RFC 1982 arithmetic
	return age < cookieLife && age > -cookieSkew && hmac.Equal(b, c.make(b[:clientCookie], client, stamp))
}

// make returns a client's cookie followed by the server's.
func (c *cookies) make(client []byte, addr netip.Addr, stamp uint32) []byte {
	b := make([]byte, 0, clientCookie+sha256.Size+8)
	b = append(b, client...)
	b = append(b, 1, 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, stamp)
	h := hmac.New(sha256.New, c.secret[:])
	h.Write(b)
	a := addr.As16()
	h.Write(a[:])
	return h.Sum(b)[:clientCookie+serverCookie]
}
