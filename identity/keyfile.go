package identity

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// ErrPermissions is wrapped by the error of ReadKeyFile when the file's group or others may read or change it.
var ErrPermissions = errors.New("others can read or change the key")

const maxKeyFile = 64 << 10 // bytes

// DefaultKeyFile returns where the key is kept if nothing else is said: harp/id.jwk in the user's configuration folder.
// It fails if the system does not know that folder, for example because $HOME is not set.
func DefaultKeyFile() (string, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", fmt.Errorf("find the configuration folder: %w", err)
	}
	return filepath.Join(dir, "harp", "id.jwk"), nil
}

// ReadKeyFile reads the key in the file, in any form that ParseKey knows. The error wraps fs.ErrNotExist if there is no
// such file, ErrPermissions if group or others have any right to it (not checked on Windows), and ErrNotKey if it is
// not a regular file of at most 64 KiB with a key in it. Symbolic links are followed.
func ReadKeyFile(path string) (Key, error) {
	// Asked before opening: opening a named pipe would wait for a writer.
	if fi, err := os.Stat(path); err != nil {
		return Key{}, fmt.Errorf("read key: %w", err)
	} else if !fi.Mode().IsRegular() {
		return Key{}, fmt.Errorf("read key: %s is not a regular file: %w", path, ErrNotKey)
	}
	f, err := os.Open(path)
	if err != nil {
		return Key{}, fmt.Errorf("read key: %w", err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return Key{}, fmt.Errorf("read key: %w", err)
	}
	if perm := fi.Mode().Perm(); perm&0o077 != 0 && runtime.GOOS != "windows" {
		return Key{}, fmt.Errorf("read key: %s has mode %04o: %w", path, perm, ErrPermissions)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return Key{}, fmt.Errorf("read key: %w", err)
	}
	if len(data) > maxKeyFile {
		return Key{}, fmt.Errorf("read key: %s is larger than %d bytes: %w", path, maxKeyFile, ErrNotKey)
	}
	k, err := ParseKey(data)
	if err != nil {
		return Key{}, fmt.Errorf("read key: %s: %w", path, err)
	}
	return k, nil
}

// WriteKeyFile writes the key as a private JWK with mode 0600 and creates the folder, with mode 0700, if it is missing.
// The file appears whole or not at all, and is on the disk when WriteKeyFile returns nil. Without force it never
// replaces a file: the error then wraps fs.ErrExist, and of any number of callers at once only one succeeds. With force
// the file, or a symbolic link in its place, is replaced.
func WriteKeyFile(path string, k Key, force bool) error {
	data, err := k.MarshalJWK()
	if err != nil {
		return fmt.Errorf("write key: %w", err)
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("write key: %w", err)
	}
	temp, err := writeTemp(dir, append(data, '\n'))
	if err != nil {
		return fmt.Errorf("write key: %w", err)
	}
	defer os.Remove(temp) // of no effect once it was renamed
	if force {
		err = os.Rename(temp, path)
	} else {
		err = publish(temp, path)
	}
	if err != nil {
		return fmt.Errorf("write key: %w", err)
	}
	syncDir(dir)
	return nil
}

// writeTemp writes data to a new file in dir that only the user may read, and returns its name.
func writeTemp(dir string, data []byte) (name string, err error) {
	f, err := os.CreateTemp(dir, ".id-*.tmp") // mode 0600
	if err != nil {
		return "", err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		os.Remove(f.Name())
		return "", err
	}
	return f.Name(), nil
}

// publish gives the file temp the name path unless that name is taken; the error then wraps fs.ErrExist.
func publish(temp, path string) error {
	err := os.Link(temp, path)
	if err == nil || errors.Is(err, fs.ErrExist) {
		return err
	}
	return claim(temp, path)
}

// claim is publish where there are no hard links (FAT, Android): whoever creates the empty file owns the name and may
// rename over it. For a moment a reader can find the file empty.
func claim(temp, path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	f.Close()
	if err := os.Rename(temp, path); err != nil {
		os.Remove(path)
		return err
	}
	return nil
}

// syncDir makes a new name in dir last through a power cut. Some systems can not do that for a folder, and the key is
// written by then, so a failure is not reported.
func syncDir(dir string) {
	if d, err := os.Open(dir); err == nil {
		d.Sync()
		d.Close()
	}
}
