package main

import (
	"crypto/x509"
	"strings"
	"testing"
	"time"
)

func TestCheckLeaf(t *testing.T) {
	now := time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)
	tests := []struct {
		names  []string
		byHost bool
		ends   time.Time
		want   string // contained in the error; empty for none
	}{
		{[]string{"x.example", "*.x.example"}, true, now.AddDate(0, 1, 0), ""},
		{[]string{"x.example"}, true, now.AddDate(0, 1, 0), "not for *.x.example"},
		{[]string{"x.example"}, false, now.AddDate(0, 1, 0), ""},
		{[]string{"*.x.example"}, true, now.AddDate(0, 1, 0), "not for x.example"},
		{[]string{"x.example", "*.x.example"}, true, now.AddDate(0, 0, -1), "expired on 2026-04-30"},
	}
	for _, test := range tests {
		cert := &x509.Certificate{DNSNames: test.names, NotAfter: test.ends}
		err := checkLeaf(cert, config{Domain: "x.example", Cert: "c.pem", RouteHost: test.byHost}, now)
		if test.want == "" {
			if err != nil {
				t.Errorf("%q until %v: %v", test.names, test.ends, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q until %v: error %v, want %q", test.names, test.ends, err, test.want)
		}
	}
}
