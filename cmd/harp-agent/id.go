package main

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/harp-tunnel/harp/cmd/internal/cli"
	"github.com/harp-tunnel/harp/identity"
)

// A shownIdentity is what id and keygen print. The JSON names are a promise to scripts, as is the order of lines.
type shownIdentity struct {
	Thumbprint string `json:"thumbprint"`
	Session    string `json:"session,omitempty"`
	Label      string `json:"label"`
	Hostname   string `json:"hostname,omitempty"` // absent if the edge is not known, or only by its address
	URL        string `json:"url,omitempty"`      // as Hostname
}

func newIDCommand(shared *config) *cobra.Command {
	var domain string
	asJSON := false
	cmd := &cobra.Command{
		Use:   "id",
		Short: "print who this agent is and what its URL is, without asking anybody",
		Long: `harp-agent id prints the thumbprint of the key, its label, and, if the edge is known, the URL: one a
line, as "name: value". Nothing is dialled.`,
		Example: "  harp-agent id --domain tunnels.example.com\n  harp-agent id --session api --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			edge, err := shared.edge(domain)
			if err != nil {
				return err
			}
			if err := checkName(shared.Session, ""); err != nil {
				return err
			}
			key, err := identity.ReadKeyFile(shared.KeyFile)
			if err != nil {
				return cli.KeyError(err, shared.KeyFile)
			}
			shown := showIdentity(key, shared.Session, edge)
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(shown)
			}
			return shown.print(cmd.OutOrStdout())
		},
	}
	f := cli.LocalFlags(cmd)
	f.Group("Name")
	shared.declareName(f)
	f.String(&domain, "domain DOMAIN", "", "the edge's domain, where it is not what --server says")
	f.Group("Output")
	f.Bool(&asJSON, "json", false, "print one JSON object")
	f.ArgOnly("domain", "json")
	return cmd
}

// edge returns where the edge is: by domain, else by --server, else not known.
func (c config) edge(domain string) (edgeURL, error) {
	if domain != "" {
		return parseEdge("domain", domain)
	}
	return parseEdge("server", c.Server)
}

func showIdentity(key identity.Key, session string, edge edgeURL) shownIdentity {
	thumbprint := key.Public().Thumbprint()
	label := thumbprint.Label(session)
	return shownIdentity{
		Thumbprint: thumbprint.String(),
		Session:    session,
		Label:      label,
		Hostname:   edge.hostname(label),
		URL:        edge.tunnelURL(label),
	}
}

// print writes one "name: value" a line, and nothing for what is empty.
func (s shownIdentity) print(w io.Writer) error {
	for _, line := range [...]struct{ name, value string }{
		{"thumbprint", s.Thumbprint}, {"session", s.Session}, {"label", s.Label}, {"url", s.URL},
	} {
		if line.value == "" {
			continue
		}
		if _, err := fmt.Fprintf(w, "%s: %s\n", line.name, line.value); err != nil {
			return err
		}
	}
	return nil
}
