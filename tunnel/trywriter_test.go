package tunnel

import (
	"bytes"
	"io"
	"net"
	"runtime"
	"testing"
)

func TestTryWriter(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("there is none")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	there, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	here, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	w := NewTryWriter(here)
	if w == nil {
		t.Fatal("no TryWriter for a TCP connection")
	}
	p := bytes.Repeat([]byte("0123456789"), 10_000)
	var sent []byte
	for full := false; !full; {
		n, err := w.TryWrite(p)
		if err != nil || n < 0 || n > len(p) {
			t.Fatalf("%d bytes, %v", n, err)
		}
		sent = append(sent, p[:n]...)
		full = n < len(p)
	}
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(there, got); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("what was taken did not arrive as it was: %v", err)
	}
	if n, err := w.TryWrite([]byte("x")); n != 1 || err != nil {
		t.Errorf("when there is room again: %d, %v", n, err)
	}
	here.Close()
	if n, err := w.TryWrite([]byte("x")); n != 0 || err == nil {
		t.Errorf("after Close: %d, %v", n, err)
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if NewTryWriter(a) != nil {
		t.Error("a TryWriter for what is no socket")
	}
}
