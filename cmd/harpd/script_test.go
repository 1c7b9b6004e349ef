package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// asProgram set in the environment makes TestScript be harpd.
const asProgram = "TEST_BE_HARPD"

// TestScript runs the scripts of testdata/script. In them harpd is this test binary once more. (testscript.Main, which
// would arrange that, wants TestMain for itself, and the leak check of the end-to-end tests has it.)
func TestScript(t *testing.T) {
	if os.Getenv(asProgram) != "" {
		os.Args = append([]string{"harpd"}, os.Args[3:]...) // without the binary, -test.run and --
		main()                                              // exits
	}
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	wrapper := "#!/bin/sh\n" + asProgram + "=1 exec '" + binary + "' '-test.run=^TestScript$' -- \"$@\"\n"
	if err := os.WriteFile(filepath.Join(bin, "harpd"), []byte(wrapper), 0o755); err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", bin+string(os.PathListSeparator)+env.Getenv("PATH"))
			env.Setenv("HOME", env.WorkDir)
			return nil
		},
	})
}
