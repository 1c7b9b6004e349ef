package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/libdns/libdns"
	mdns "github.com/miekg/dns"
)

// maxKeyFile bounds a key file, in bytes.
const maxKeyFile = 64 << 10

// An RFC2136 changes records of a DNS server by dynamic updates (RFC 2136) that are signed with a shared key (TSIG, RFC
// 8945). It is a libdns provider.
type RFC2136 struct {
	// Server takes the updates, host:port.
	Server string

	keyName   string // canonical
	algorithm string
	secret    string // base64
}

// algorithms are the TSIG algorithms by the names that people give them.
var algorithms = map[string]string{
	"hmac-sha1": mdns.HmacSHA1, "hmac-sha224": mdns.HmacSHA224, "hmac-sha256": mdns.HmacSHA256,
	"hmac-sha384": mdns.HmacSHA384, "hmac-sha512": mdns.HmacSHA512,
}

// NewRFC2136 returns a provider for a server, host or host:port, with the key of a file: one that BIND's tsig-keygen
// wrote, Knot's algorithm:name:secret, or the base64 secret alone, which then is an hmac-sha256 key named keyName. An
// empty keyName means the file's own; another must be the file's own. A file that others may read is refused.
func NewRFC2136(server, keyName, keyFile string) (*RFC2136, error) {
	if _, _, err := net.SplitHostPort(server); err != nil {
		server = net.JoinHostPort(strings.Trim(server, "[]"), "53")
	}
	info, err := os.Stat(keyFile)
	if err != nil {
		return nil, fmt.Errorf("TSIG key: %w", err)
	}
	if info.Mode().Perm()&0o007 != 0 {
		return nil, fmt.Errorf("TSIG key: %s is open to everybody: chmod 600 %s", keyFile, keyFile)
	}
	if info.Size() > maxKeyFile {
		return nil, fmt.Errorf("TSIG key: %s is no key file", keyFile)
	}
	text, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, fmt.Errorf("TSIG key: %w", err)
	}
	name, algorithm, secret, err := parseKey(string(text))
	if err != nil {
		return nil, fmt.Errorf("TSIG key: %s: %w", keyFile, err)
	}
	switch {
	case name == "" && keyName == "":
		return nil, fmt.Errorf("TSIG key: %s does not say the key's name", keyFile)
	case name != "" && keyName != "" && mdns.CanonicalName(name) != mdns.CanonicalName(keyName):
		return nil, fmt.Errorf("TSIG key: %s has the key %s, not %s", keyFile, name, keyName)
	case keyName != "":
		name = keyName
	}
	return &RFC2136{Server: server, keyName: mdns.CanonicalName(name), algorithm: algorithm, secret: secret}, nil
}

var (
	bindKey   = regexp.MustCompile(`(?s)key\s+"?([^"\s{]+)"?\s*\{(.*?)\}`)
	bindField = regexp.MustCompile(`(algorithm|secret)\s+"?([^";\s]+)"?\s*;`)
	knotKey   = regexp.MustCompile(`^(hmac-[a-z0-9]+):([^:\s]+):(\S+)$`)
	base64Key = regexp.MustCompile(`^[A-Za-z0-9+/]+=*$`)
)

// parseKey reads a key file's text.
func parseKey(text string) (name, algorithm, secret string, err error) {
	text = strings.TrimSpace(text)
	algorithm = "hmac-sha256"
	if m := bindKey.FindStringSubmatch(text); m != nil {
		name = m[1]
		for _, f := range bindField.FindAllStringSubmatch(m[2], -1) {
			if f[1] == "algorithm" {
				algorithm = strings.ToLower(f[2])
			} else {
				secret = f[2]
			}
		}
	} else if m := knotKey.FindStringSubmatch(text); m != nil {
		algorithm, name, secret = m[1], m[2], m[3]
	} else {
		secret = text
	}
	full, ok := algorithms[strings.TrimSuffix(algorithm, ".")]
	switch {
	case !base64Key.MatchString(secret):
		return "", "", "", errors.New("neither a key file of BIND, nor algorithm:name:secret, nor a secret in base64")
	case !ok:
		return "", "", "", fmt.Errorf("the algorithm %s is not supported", algorithm)
	}
	return name, full, secret, nil
}

// AppendRecords adds records to a zone.
func (p *RFC2136) AppendRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	return records, p.update(ctx, zone, records, (*mdns.Msg).Insert)
}

// DeleteRecords removes exactly these records from a zone; ones that are not there are no error.
func (p *RFC2136) DeleteRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	return records, p.update(ctx, zone, records, (*mdns.Msg).Remove)
}

func (p *RFC2136) update(ctx context.Context, zone string, records []libdns.Record, change func(*mdns.Msg, []mdns.RR)) error {
	zone = mdns.Fqdn(zone)
	rrs, err := inZone(zone, records)
	if err != nil {
		return err
	}
	m := new(mdns.Msg).SetUpdate(zone)
	change(m, rrs)
	m.SetTsig(p.keyName, p.algorithm, 300, time.Now().Unix())
	client := mdns.Client{Net: "tcp", TsigSecret: map[string]string{p.keyName: p.secret}, Timeout: 10 * time.Second}
	answer, _, err := client.ExchangeContext(ctx, m, p.Server)
	if answer != nil && answer.Rcode != mdns.RcodeSuccess { // also one whose signature is none: it says what is wrong with ours
		return fmt.Errorf("update of %s at %s: %s", zone, p.Server, explainRcode(answer, p.keyName))
	}
	if err != nil {
		return fmt.Errorf("update of %s at %s: %w", zone, p.Server, err)
	}
	return nil
}

// inZone writes records in the form of the wire.
func inZone(zone string, records []libdns.Record) ([]mdns.RR, error) {
	var rrs []mdns.RR
	for _, r := range records {
		record := r.RR()
		name := mdns.Fqdn(libdns.AbsoluteName(record.Name, zone))
		if record.Type == "TXT" { // its text may hold anything
			rrs = append(rrs, &mdns.TXT{
				Hdr: mdns.RR_Header{Name: name, Rrtype: mdns.TypeTXT, Class: mdns.ClassINET, Ttl: uint32(record.TTL / time.Second)},
				Txt: []string{record.Data},
			})
			continue
		}
		rr, err := mdns.NewRR(fmt.Sprintf("%s %d IN %s %s", name, record.TTL/time.Second, record.Type, record.Data))
		if err != nil {
			return nil, fmt.Errorf("record %s: %w", name, err)
		}
		rrs = append(rrs, rr)
	}
	return rrs, nil
}

// explainRcode says what a server's refusal means.
func explainRcode(answer *mdns.Msg, key string) string {
	code := answer.Rcode
	if t := answer.IsTsig(); t != nil && t.Error != 0 {
		code = int(t.Error)
	}
	text := mdns.RcodeToString[code]
	switch code {
	case mdns.RcodeBadKey:
		text += ": the server does not know the key " + key
	case mdns.RcodeBadSig:
		text += ": the secret or the algorithm of the key " + key + " is another there"
	case mdns.RcodeBadTime:
		text += ": the clocks of the two machines differ"
	case mdns.RcodeRefused:
		text += ": the key " + key + " may not change this"
	case mdns.RcodeNotAuth:
		text += ": the server does not hold the zone, or does not know the key " + key
	case mdns.RcodeNotZone:
		text += ": the name is not in the zone"
	}
	return text
}
