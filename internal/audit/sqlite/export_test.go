package sqlite

import "testing"

// WriterPragma reads a setting of the connection that writes.
func (s *Store) WriterPragma(t *testing.T, name string) string {
	t.Helper()
	var v string
	if err := s.write.QueryRowContext(t.Context(), "PRAGMA "+name).Scan(&v); err != nil {
		t.Fatal(err)
	}
	return v
}
