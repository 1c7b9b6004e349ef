package cli

import "testing"

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "1": 1, "512000": 512000, "500kb": 512000, "500KB": 512000, "500k": 512000, "500KiB": 512000,
		"500 kb": 512000, "1mb": 1 << 20, "64kib": 64 << 10, "2gb": 2 << 30, "7b": 7, "8388607tb": 8388607 << 40,
	} {
		if got, err := ParseSize(text); got != want || err != nil {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "kb", "-1", "1.5mb", "12x", "1bib", "1kbkb", "8388608tb", "99999999999999999999", "1 2kb"} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("ParseSize(%q) = %d, want an error", text, got)
		}
	}
}

func TestFormatSizeParsesBack(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 1: "1", 1023: "1023", 512000: "500kb", 1 << 20: "1mb", 3 << 40: "3tb"} {
		if got := FormatSize(n); got != want {
			t.Errorf("FormatSize(%d) = %q, want %q", n, got, want)
		}
		if back, err := ParseSize(FormatSize(n)); back != n || err != nil {
			t.Errorf("ParseSize(FormatSize(%d)) = %d, %v", n, back, err)
		}
	}
}
