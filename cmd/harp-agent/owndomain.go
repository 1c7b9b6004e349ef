package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/net/idna"

	"github.com/harp-tunnel/harp/cmd/internal/cli"
	"github.com/harp-tunnel/harp/identity"
)

// parseDomains returns the hostnames that values of --domain mean, each once: in ASCII, in lower case and without the last
// dot. A URL without a path stands for its host.
func parseDomains(values []string) ([]string, error) {
	var names []string
	for _, value := range values {
		name, err := parseDomain(value)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if err := checkDomains(names); err != nil {
		return nil, &cli.Error{Err: fmt.Errorf("--domain: %w", err), Hint: "publish the others by a second harp-agent up, with a --session of its own"}
	}
	return names, nil
}

func parseDomain(value string) (string, error) {
	const example = "write --domain app.example.org"
	fail := func(why, hint string) (string, error) {
		return "", &cli.Error{Err: fmt.Errorf("--domain %q %s", value, why), Hint: hint}
	}
	text := value
	if scheme, rest, ok := strings.Cut(text, "://"); ok {
		if scheme = strings.ToLower(scheme); scheme != "https" && scheme != "http" {
			return fail("is not a hostname", example)
		}
		text = strings.TrimRight(rest, "/")
	}
	if host, _, more := strings.Cut(text, "/"); more {
		return fail("has a path", "write --domain "+host+", and serve a part of it with --path")
	}
	if _, err := netip.ParseAddr(strings.Trim(text, "[]")); err == nil {
		return fail("is an address, which nobody's key can prove", example)
	}
	if host, _, more := strings.Cut(text, ":"); more {
		return fail("has a port", "write --domain "+host)
	}
	if parent, ok := strings.CutPrefix(text, "*."); ok {
		return fail("is a wildcard", "name each hostname, such as --domain app."+parent)
	}
	profile := idna.New(idna.MapForLookup(), idna.StrictDomainName(true), idna.VerifyDNSLength(true))
	name, err := profile.ToASCII(strings.TrimSuffix(text, "."))
	switch {
	case err != nil || checkDomains([]string{name}) != nil:
		return fail("is not a hostname: letters, digits, hyphens and dots make one", example)
	case !strings.Contains(name, "."):
		return fail("is not a hostname on the internet: it has no dot", example)
	}
	return name, nil
}

// checkDomains returns an error if the edge would refuse the names for their form or number.
func checkDomains(names []string) error {
	const any = "x" // stands for what is known only when the edge has been dialled
	return identity.Registration{Audience: any, Challenge: any, Hostnames: names}.Validate()
}
