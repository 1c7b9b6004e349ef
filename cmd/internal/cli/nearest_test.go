package cli

import (
	"strings"
	"testing"
)

func TestNearest(t *testing.T) {
	flags := []string{"domain", "max-body", "max-streams", "insecure-upstream", "log-level", "path"}
	for name, want := range map[string]string{
		"domian": "domain", "doman": "domain", "Domain": "domain", "maxbody": "max-body", "max-stream": "max-streams",
		"insecure": "insecure-upstream", "paht": "path", "log-levle": "log-level",
		"x": "", "verbose": "", "": "", strings.Repeat("a", 1000): "",
	} {
		if got, _ := nearest(name, flags); got != want {
			t.Errorf("nearest(%q) = %q, want %q", name, got, want)
		}
	}
}
