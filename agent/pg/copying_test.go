package pg

import "testing"

func TestCopyingInWords(t *testing.T) {
	for want, c := range map[string]Copying{
		"basebackup":                        {Method: "basebackup"},
		"basebackup, 3 MB":                  {Method: "basebackup", Done: 3 << 20},
		"basebackup, 3 of 29 MB":            {Method: "basebackup", Done: 3 << 20, Total: 29 << 20},
		"basebackup, 29 of 29 MB":           {Method: "basebackup", Done: 41 << 20, Total: 29 << 20},
		"pgbackrest, 45 %; basebackup: why": {Method: "pgbackrest", Percent: 45, Done: 1, Total: 2, Failed: "basebackup: why"},
	} {
		if got := c.String(); got != want {
			t.Errorf("%+v is %q, want %q", c, got, want)
		}
	}
}
