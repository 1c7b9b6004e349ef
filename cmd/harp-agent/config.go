package main

import (
	"fmt"

	"github.com/harp-tunnel/harp/cmd/internal/cli"
	"github.com/harp-tunnel/harp/identity"
)

// A config holds the settings that several commands share.
type config struct {
	KeyFile string // empty if the system has no place for it and none was given
	Server  string // the edge, as parseEdge reads it; may be empty
	Session string // tells several names of one key apart; empty is the main name

	LogLevel, LogFormat string
}

// An upConfig holds the settings of harp-agent up.
type upConfig struct {
	config
	Target string // empty means http://localhost:8080

	Domains   []string // hostnames of one's own
	Path      string   // prefix that is served; empty means all
	StripPath bool     // the upstream does not see Path
	Mode      string   // takeover, share or standby

	HostHeader       string   // preserve, rewrite or what to send
	HeaderAdd        []string // as parseHeaders reads them
	InsecureUpstream bool

	endConfig

	CAFile        string // PEM, trusted beside the system's for the edge
	StateFile     string // empty means none
	Wait          bool   // false counts as ExitOnFailure
	ExitOnFailure bool
	Inspect       string // address, or off
}

// declareName makes f set what decides about the name.
func (c *config) declareName(f *cli.Flags) {
	f.String(&c.Server, "server URL", "", "the edge; tunnels.example.com means https://tunnels.example.com")
	f.String(&c.Session, "session NAME", "", "a further name with the same key")
}

// declare makes f set c.
func (c *upConfig) declare(f *cli.Flags) {
	f.Group("Name")
	c.declareName(f)
	f.Strings(&c.Domains, "domain NAME", "a hostname of your own that is a CNAME to the tunnel's name; repeatable")
	f.String(&c.Path, "path /PREFIX", "", "serve only what is below this path of the name")
	f.Choice(&c.Mode, "mode MODE", identity.ModeTakeover,
		[]string{identity.ModeTakeover, identity.ModeShare, identity.ModeStandby},
		"beside another agent with the same name: takeover sends it away, share divides the requests, standby waits until it is gone")

	f.Group("Upstream")
	f.String(&c.Target, "target TARGET", "", "the same as the argument, for use in a file")
	f.Bool(&c.StripPath, "strip-path", false, "take the prefix of --path off before forwarding")
	f.String(&c.HostHeader, "host-header HOST", "preserve",
		"the Host that the upstream gets: preserve is the visitor's, rewrite is the target's, anything else is sent as it is")
	f.Lines(&c.HeaderAdd, "header-add 'NAME: VALUE'",
		"set this field on every request; a secret belongs into a file: 'NAME: @FILE' reads the value, @FILE whole lines; repeatable")
	f.Bool(&c.InsecureUpstream, "insecure-upstream", false, "accept any certificate of an https:// target")

	c.endConfig.declare(f)

	f.Group("Connection")
	f.String(&c.CAFile, "ca-file FILE", "", "trust these certificates (PEM) for the edge, beside the system's")
	f.Bool(&c.Wait, "wait", true, "at the start, wait until the edge can be reached; a lost link is dialled anew in any case")
	f.Bool(&c.ExitOnFailure, "exit-on-failure", false, "exit with code 3 if the edge cannot be reached at the start; counts before --wait")
	f.String(&c.StateFile, "state-file FILE", "", "keep hostname and URL there, in JSON, for other programs; removed at the end")
	f.String(&c.Inspect, "inspect ADDR", "off", "where to show the requests, or off")
	f.Hide("inspect") // until there is an inspector
}

// checkName returns an error if the edge would refuse the session or path for its form.
func checkName(session, path string) error {
	const any = "x" // stands for what is known only when the edge has been dialled
	r := identity.Registration{Audience: any, Challenge: any, Session: session}
	if err := r.Validate(); err != nil {
		return &cli.Error{Err: fmt.Errorf("--session: %w", err), Hint: "a session is one short word, such as api"}
	}
	if _, err := identity.CleanPath(path); err != nil {
		return &cli.Error{Err: fmt.Errorf("--path: %w", err), Hint: "a path begins with a slash, such as /api"}
	}
	return nil
}
