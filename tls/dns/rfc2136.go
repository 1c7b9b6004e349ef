package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/libdns/libdns"
	mdns "github.com/miekg/dns"
)

const (
	udpTime = 3 * time.Second // for an answer by UDP, before TCP is tried
	tcpTime = 10 * time.Second
	maxTTL  = 1<<31 - 1 // seconds (RFC 2181, section 8)
	fudge   = 300       // seconds by which clocks may differ (RFC 8945, section 10)
)

// An RFC2136 changes records of a DNS server by dynamic updates (RFC 2136) that are signed with a shared key (TSIG, RFC
// 8945). It is a libdns provider. Its methods may be called from any goroutine; NewRFC2136 makes one.
type RFC2136 struct {
	// Server takes the updates, host:port.
	Server string

	key tsigKey
	now func() time.Time
}

// NewRFC2136 returns a provider for a server, host or host:port (53 if there is none), with the key of a file: one that
// BIND's tsig-keygen or Knot's keymgr wrote, algorithm:name:secret, or the base64 secret alone, which then is an
// hmac-sha256 key named keyName. An empty keyName means the only key of the file, another the key of that name. A file
// that everybody may read is refused.
func NewRFC2136(server, keyName, keyFile string) (*RFC2136, error) {
	host, port, err := net.SplitHostPort(server)
	if err != nil {
		host, port = strings.Trim(server, "[]"), ""
	}
	if host == "" {
		return nil, fmt.Errorf("DNS server %q has no host", server)
	}
	if port == "" {
		port = "53"
	}
	key, err := readKey(keyFile, keyName)
	if err != nil {
		return nil, fmt.Errorf("TSIG key: %w", err)
	}
	return &RFC2136{Server: net.JoinHostPort(host, port), key: key, now: time.Now}, nil
}

// AppendRecords adds records to a zone, all or none. One that is there already is no error.
func (p *RFC2136) AppendRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	return p.update(ctx, zone, records, (*mdns.Msg).Insert)
}

// DeleteRecords removes exactly these records from a zone, whatever their TTL, all or none. Ones that are not there are
// no error, and are returned too, for the server does not say. Each record must have a type and data: what libdns
// otherwise takes to mean all of a name is refused.
func (p *RFC2136) DeleteRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	return p.update(ctx, zone, records, (*mdns.Msg).Remove)
}

func (p *RFC2136) update(ctx context.Context, zone string, records []libdns.Record, change func(*mdns.Msg, []mdns.RR)) ([]libdns.Record, error) {
	if len(records) == 0 {
		return nil, nil
	}
	zone = mdns.Fqdn(zone)
	var rrs []mdns.RR
	for _, r := range records {
		rr, err := wireRecord(zone, r.RR())
		if err != nil {
			return nil, err
		}
		rrs = append(rrs, rr)
	}
	m := new(mdns.Msg).SetUpdate(zone)
	change(m, rrs)
	if err := p.exchange(ctx, m); err != nil {
		return nil, fmt.Errorf("update of %s at %s: %w", zone, p.Server, err)
	}
	return records, nil
}

// exchange has the server do m, by UDP, and by TCP if m is too long for that or no whole answer came. To do it twice does
// no harm (RFC 2136, section 3.4.2).
func (p *RFC2136) exchange(ctx context.Context, m *mdns.Msg) error {
	const signature = 160 // bytes, at most, beside the key's name
	if m.Len()+len(p.key.name)+signature <= mdns.MinMsgSize {
		if done, err := p.over(ctx, mdns.Client{Net: "udp", Timeout: udpTime, UDPSize: 4096}, m); done {
			return err
		}
	}
	_, err := p.over(ctx, mdns.Client{Net: "tcp", Timeout: tcpTime}, m)
	return err
}

// over sends m once. It reports false if another try may do better: nothing came, or nothing that can be trusted.
func (p *RFC2136) over(ctx context.Context, client mdns.Client, m *mdns.Msg) (done bool, err error) {
	client.TsigSecret = map[string]string{p.key.name: p.key.secret}
	conn, err := client.DialContext(ctx, p.Server)
	if err != nil {
		return ctx.Err() != nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })() // the client knows deadlines only
	signed := m.Copy().SetTsig(p.key.name, p.key.algorithm, fudge, p.now().Unix())
	answer, _, err := client.ExchangeWithConnContext(ctx, signed, conn)
	switch {
	case ctx.Err() != nil:
		return true, context.Cause(ctx)
	case answer != nil && answer.Id == m.Id && answer.Response && answer.Rcode != mdns.RcodeSuccess:
		return true, errors.New(p.explain(answer)) // even unsigned: it says what is wrong with our signature
	case err != nil:
		return false, err
	case answer.Truncated:
		return false, errors.New("the answer is cut off")
	case answer.IsTsig() == nil: // the client looks at a signature only if there is one
		return false, errors.New("the answer is not signed")
	}
	return true, nil
}

// wireRecord writes a record in the form of the wire.
func wireRecord(zone string, r libdns.RR) (mdns.RR, error) {
	name := mdns.Fqdn(libdns.AbsoluteName(r.Name, zone))
	if _, ok := mdns.IsDomainName(name); !ok {
		return nil, fmt.Errorf("record %q: not a name", name)
	}
	if r.Type == "" || r.Data == "" {
		return nil, fmt.Errorf("record %s: type and data are needed", name)
	}
	ttl := uint32(min(max(r.TTL/time.Second, 0), maxTTL))
	if r.Type == "TXT" { // its text may hold anything
		return &mdns.TXT{
			Hdr: mdns.RR_Header{Name: name, Rrtype: mdns.TypeTXT, Class: mdns.ClassINET, Ttl: ttl},
			Txt: texts(r.Data),
		}, nil
	}
	// A parser of its own, since that of mdns.NewRR lets $INCLUDE read files.
	parser := mdns.NewZoneParser(strings.NewReader(fmt.Sprintf(". %d IN %s %s\n", ttl, r.Type, r.Data)), ".", "")
	rr, ok := parser.Next()
	_, more := parser.Next()
	switch err := parser.Err(); {
	case err != nil:
		return nil, fmt.Errorf("record %s: %w", name, err)
	case !ok || more || mdns.Type(rr.Header().Rrtype).String() != r.Type:
		return nil, fmt.Errorf("record %s: not the data of one %s record", name, r.Type)
	}
	rr.Header().Name = name
	return rr, nil
}

// texts cuts a TXT record's data into strings of at most 255 bytes, written so that the packer, which reads backslashes,
// gives back the same bytes.
func texts(data string) (out []string) {
	for len(data) > 0 {
		n := min(len(data), 255)
		out = append(out, strings.ReplaceAll(data[:n], `\`, `\\`))
		data = data[n:]
	}
	return out
}

// explain says what a server's refusal means.
func (p *RFC2136) explain(answer *mdns.Msg) string {
	code, tsig := answer.Rcode, answer.IsTsig()
	if tsig != nil && tsig.Error != mdns.RcodeSuccess {
		code = int(tsig.Error)
	}
	text := mdns.RcodeToString[code]
	if text == "" {
		text = "code " + strconv.Itoa(code)
	}
	switch code {
	case mdns.RcodeBadKey:
		text += ": the server does not know the key " + p.key.String() + ", or does not let it update this" // Knot's refusal
	case mdns.RcodeBadSig:
		text += ": the server has another secret for the key " + p.key.String()
	case mdns.RcodeBadTime:
		text += ": the clocks of the two machines differ"
		if tsig == nil {
			break
		}
		if seconds, err := strconv.ParseUint(tsig.OtherData, 16, 48); err == nil { // RFC 8945, section 5.2.3
			text += "; the server's says " + time.Unix(int64(seconds), 0).UTC().Format(time.RFC3339)
		}
	case mdns.RcodeRefused:
		text += ": the key " + p.key.String() + " may not update this"
	case mdns.RcodeNotAuth:
		text += ": the server is not the primary of this zone"
		if tsig == nil {
			text += ", or does not know the key " + p.key.String()
		}
	case mdns.RcodeNotZone:
		text += ": the record's name is not in the zone"
	case mdns.RcodeNotImplemented:
		text += ": the server takes no updates"
	case mdns.RcodeServerFailure, mdns.RcodeFormatError:
		text += ": the server could not do it, its log should say why"
	}
	return text
}
