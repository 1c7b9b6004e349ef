package tls

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
)

func TestServerConfig(t *testing.T) {
	t.Parallel()
	ca, err := OpenInternalCA(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.RootPEM())
	server := ca.TLSConfig("localhost")
	client := func(change func(*tls.Config)) *tls.Config {
		c := &tls.Config{ServerName: "localhost", RootCAs: roots, MinVersion: tls.VersionTLS10}
		change(c)
		return c
	}
	if _, err := dial(t, server, client(func(c *tls.Config) { c.MaxVersion = tls.VersionTLS11 })); err == nil {
		t.Error("TLS 1.1 was accepted")
	}
	state, err := dial(t, server, client(func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }))
	if err != nil || state.Version != tls.VersionTLS12 {
		t.Errorf("TLS 1.2: %v", err)
	}
	weak := []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA}
	if _, err := dial(t, server, client(func(c *tls.Config) { c.MaxVersion, c.CipherSuites = tls.VersionTLS12, weak })); err == nil {
		t.Error("a CBC suite was accepted")
	}
	state, err = dial(t, server, client(func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.X25519MLKEM768} }))
	if err != nil || state.CurveID != tls.X25519MLKEM768 {
		t.Errorf("post-quantum key exchange: %v, %v", state.CurveID, err)
	}
	for _, protocol := range []string{"h2", "http/1.1"} {
		state, err = dial(t, server, client(func(c *tls.Config) { c.NextProtos = []string{protocol} }))
		if err != nil || state.NegotiatedProtocol != protocol {
			t.Errorf("%s: got %q, %v", protocol, state.NegotiatedProtocol, err)
		}
	}
	if _, err := dial(t, server, client(func(c *tls.Config) { c.NextProtos = []string{"smtp"} })); err == nil {
		t.Error("a connection for another protocol was accepted (RFC 7301, section 3.2)")
	}
	cache := tls.NewLRUClientSessionCache(1)
	for i := range 2 {
		state, err = dial(t, server, client(func(c *tls.Config) { c.MaxVersion, c.ClientSessionCache = tls.VersionTLS12, cache }))
		if err != nil || state.DidResume != (i == 1) {
			t.Errorf("connection %d: resumed %v, %v", i, state.DidResume, err)
		}
	}
}

// TestServerConfigResumes: with TLS 1.3 the ticket comes after the handshake.
func TestServerConfigResumes(t *testing.T) {
	t.Parallel()
	ca, err := OpenInternalCA(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", ca.TLSConfig("localhost"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for conn, err := l.Accept(); err == nil; conn, err = l.Accept() { // ends with l
			_, _ = conn.Write([]byte("x"))
			_ = conn.Close()
		}
	}()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.RootPEM())
	client := &tls.Config{ServerName: "localhost", RootCAs: roots, ClientSessionCache: tls.NewLRUClientSessionCache(1)}
	for i := range 2 {
		conn, err := tls.Dial("tcp", l.Addr().String(), client)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Read(make([]byte, 1))
		_ = conn.Close()
		if state := conn.ConnectionState(); state.Version != tls.VersionTLS13 || state.DidResume != (i == 1) {
			t.Errorf("connection %d: version %x, resumed %v", i, state.Version, state.DidResume)
		}
	}
}

// TestServerConfigAlerts: who gets no certificate is told so in the way of TLS.
func TestServerConfigAlerts(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  error
		want string
	}{
		{errUnknownName, "unrecognized name"},
		{errors.New("none yet"), "internal error"},
	} {
		server := serverConfig(func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, c.err })
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			_, err := dial(t, server, &tls.Config{ServerName: "x.test", MaxVersion: version, MinVersion: version})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v: the client got %v, want the alert %s", c.err, err, c.want)
			}
		}
	}
}
