package main

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/harp-tunnel/harp/cmd/internal/cli"
)

// A config holds the settings of an edge.
type config struct {
	Domain string // every tunnel is <label>.Domain; ASCII, lower case, no dot at the end

	HTTP, HTTPS   string // addresses to listen on; HTTPS is of no use when TLS is off
	TLS           string // auto, internal, files or off
	Cert, CertKey string // PEM files, set if and only if TLS is files
	DataDir       string // folder for what must outlive a restart; empty if this system has no place for it
	Admin         string // address of health, metrics and status, or off

	MaxBody          int64 // bytes of each request body, response body and WebSocket message; 0 means no limit
	RequestTimeout   time.Duration
	PingInterval     time.Duration
	RateLimit        float64 // requests a second to one hostname; 0 means no limit
	RateBurst        int
	VisitorRateLimit float64 // requests a second from one visitor's address; 0 means no limit
	VisitorRateBurst int
	MaxStreams       int // open at once on one link

	AuthorizedKeys string   // file; empty means that anybody may register
	Audience       []string // names that agents may dial, beside Domain
	TrustedProxy   []netip.Prefix

	RouteHost, RoutePath, RouteHeader bool // how a request finds its tunnel; at least one

	LogLevel, LogFormat string

	acmeConfig

	dev bool // this is harpd dev

	route []string // --route as it was given; checked makes the three switches of it
}

// A devConfig holds the settings of harpd dev.
type devConfig struct {
	config
	Target  string // what to publish; empty means the demo page
	KeyFile string // of the built-in agent; made if it does not exist
}

var routes = []string{"host", "path", "header"}

// declare makes the flags of cmd set c.
func (c *config) declare(cmd *cobra.Command, checkOnly *bool) {
	f := cli.LocalFlags(cmd)
	c.declareEdge(f)

	cli.GlobalFlags(cmd).General(&c.LogLevel, &c.LogFormat)
	f.Group("General")
	f.Bool(checkOnly, "check-config", false, "check settings and files, and exit")
	f.ArgOnly("check-config")
}

// declareEdge makes the flags of an edge set c.
func (c *config) declareEdge(f *cli.Flags) {
	f.Group("Address")
	f.String(&c.Domain, "domain DOMAIN", "", "every tunnel is <label>.DOMAIN; required")
	f.String(&c.HTTP, "http ADDR", ":80", "where to listen for plain HTTP")
	f.String(&c.HTTPS, "https ADDR", ":443", "where to listen for HTTPS")
	f.String(&c.Admin, "admin ADDR", "127.0.0.1:9090", "where to answer for health, metrics and status, or off; not for the public")
	c.declareRoute(f)

	f.Group("Certificates")
	f.Choice(&c.TLS, "tls KIND", "auto", []string{"auto", "internal", "files", "off"},
		"auto: certificates by themselves; internal: from a CA of this server's own (see harpd ca); files: --cert and --cert-key; off: for use behind a TLS terminator")
	f.String(&c.Cert, "cert FILE", "", "certificate for DOMAIN and *.DOMAIN with its chain, PEM")
	f.String(&c.CertKey, "cert-key FILE", "", "key of the certificate, PEM")
	f.String(&c.DataDir, "data-dir FOLDER", defaultDataDir(), "for what must outlive a restart: certificates and their keys")
	c.declareACME(f)

	f.Group("Trust")
	f.String(&c.AuthorizedKeys, "authorized-keys FILE", "",
		"who may register: an OpenSSH public key or a thumbprint a line; without it, anybody may")
	f.Strings(&c.Audience, "audience NAME", "host that agents may dial beside DOMAIN; repeatable")
	cli.List(f, &c.TrustedProxy, "trusted-proxy CIDR", parsePrefix, "proxies whose X-Forwarded-For is believed; repeatable")

	c.declareLimits(f, 500<<10)
}

// declareLimits takes the default of --max-body in bytes; 0 is no limit.
func (c *config) declareLimits(f *cli.Flags, maxBody int64) {
	f.Group("Limits")
	f.Size(&c.MaxBody, "max-body SIZE", maxBody,
		"largest request body, response body and WebSocket message; kb = 1024, 0 for no limit")
	f.Duration(&c.RequestTimeout, "request-timeout TIME", 30*time.Second, "how long a tunnel may take to begin its answer")
	f.Duration(&c.PingInterval, "ping-interval TIME", 10*time.Second,
		"silence after which a link is asked for a sign of life; after twice that it is dropped")
	f.Float(&c.RateLimit, "rate-limit N", 100, "requests a second to one hostname, 0 for no limit")
	f.Int(&c.RateBurst, "rate-burst N", 500, "requests to one hostname at once")
	f.Float(&c.VisitorRateLimit, "visitor-rate-limit N", 0, "requests a second from one visitor address, 0 for no limit (default 0)")
	f.Int(&c.VisitorRateBurst, "visitor-rate-burst N", 500, "requests from one visitor address at once, with --visitor-rate-limit")
	f.Int(&c.MaxStreams, "max-streams N", 1000, "requests open at once on the link of one agent")
}

func (c *config) declareRoute(f *cli.Flags) {
	f.Choices(&c.route, "route KINDS", []string{"host"}, routes,
		"how a request finds its tunnel: host (<label>.DOMAIN), path (DOMAIN/t/<label>/), header (Harp-Tunnel: <label> on DOMAIN); several with commas")
}

// declareDev makes the flags of cmd set c.
func (c *devConfig) declareDev(cmd *cobra.Command) {
	f := cli.LocalFlags(cmd)
	f.Group("Address")
	f.String(&c.HTTP, "http ADDR", "127.0.0.1:8080", "where to listen for plain HTTP")
	f.String(&c.Domain, "domain DOMAIN", "localhost", "the URL is http://<label>.DOMAIN")
	f.String(&c.HTTPS, "https ADDR", "off", "serve HTTPS there, too, by a CA of this machine (see harpd ca); alone, or before a TARGET that is not HOST:PORT, it means 127.0.0.1:8443")
	f.Optional("https", "127.0.0.1:8443", func(next string) bool { return next == "off" || checkAddress("https", next) == nil })
	f.String(&c.DataDir, "data-dir FOLDER", defaultDataDir(), "where that CA is kept")
	f.String(&c.Admin, "admin ADDR", "off", "where to answer for health, metrics and status, or off")
	c.declareRoute(f)
	f.String(&c.KeyFile, "key FILE", cli.DefaultKeyFile(), "key of the agent; made if it does not exist")
	c.declareLimits(f, 0)
}

// checked returns c in the form that the fields promise, or the first thing that is wrong with it. It opens no file.
func (c config) checked() (config, error) {
	if c.Domain == "" {
		return c, &cli.Error{
			Err:  errors.New("--domain is missing"),
			Hint: "harpd --domain tunnels.example.com, or to try it on this machine: harpd dev",
		}
	}
	c.RouteHost, c.RoutePath, c.RouteHeader = false, false, false
	for _, r := range c.route {
		c.RouteHost = c.RouteHost || r == "host"
		c.RoutePath = c.RoutePath || r == "path"
		c.RouteHeader = c.RouteHeader || r == "header"
	}
	var err error
	if c.Domain, err = checkDomain(c.Domain, c.RouteHost); err != nil {
		return c, err
	}
	if c, err = c.checkedACME(); err != nil {
		return c, err
	}
	for _, check := range []func(config) error{checkRoute, checkTLS, checkAddresses, checkLimits} {
		if err := check(c); err != nil {
			return c, err
		}
	}
	return c, nil
}

// checked is config.checked for harpd dev. It leaves the target to the agent.
func (c devConfig) checked() (devConfig, error) {
	c.TLS = "off"
	if c.HTTPS != "off" {
		c.TLS = "internal"
	}
	var err error
	if c.config, err = c.config.checked(); err != nil {
		return c, err
	}
	if c.KeyFile == "" {
		return c, &cli.Error{Err: errors.New("this system has no folder for the agent's key"), Hint: "harpd dev --key FILE"}
	}
	return c, nil
}

// defaultDataDir returns the folder for lasting data: the system's for root, else the user's; empty if there is none.
func defaultDataDir() string {
	home, err := os.UserHomeDir()
	switch {
	case runtime.GOOS != "windows" && os.Geteuid() == 0:
		return "/var/lib/harpd"
	case os.Getenv("XDG_DATA_HOME") != "":
		return filepath.Join(os.Getenv("XDG_DATA_HOME"), "harpd")
	case os.Getenv("LocalAppData") != "":
		return filepath.Join(os.Getenv("LocalAppData"), "harpd")
	case err != nil:
		return ""
	case runtime.GOOS == "darwin":
		return filepath.Join(home, "Library", "Application Support", "harpd")
	}
	return filepath.Join(home, ".local", "share", "harpd")
}

// looksLikeTarget reports whether a person who typed s meant something to publish.
func looksLikeTarget(s string) bool {
	return strings.Trim(s, "0123456789") == "" || strings.Contains(s, "://") || strings.HasPrefix(s, "unix:")
}
