package fence

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// Guard and watcher have their whole program in memory and all that they have written to,
// locked; and not what they only have reserved.
func TestGuardsMemoryIsLocked(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("whoever may lock memory: root, and units with LimitMEMLOCK")
	}
	ctx, p := within(t), newInstance(t)
	_, err := p.client.Status(ctx)
	must(t, err)
	program, err := os.Executable()
	must(t, err)
	const mostAnonymous = 32 << 10 // KiB; 78 MB of them were locked
	for name, pid := range map[string]int{"guard": p.client.PID(), "watcher": p.watcher(ctx, t)} {
		all, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
		must(t, err)
		anonymous, files := 0, 0
		for _, m := range regexp.MustCompile(`(?m)^[0-9a-f]+-[0-9a-f]+ `).Split(string(all), -1)[1:] {
			kib := func(what string) int {
				found := regexp.MustCompile(`(?m)^` + what + `: +(\d+) kB`).FindStringSubmatch(m)
				n, err := strconv.Atoi(found[1])
				must(t, err)
				return n
			}
			head, _, _ := strings.Cut(m, "\n")
			anonymous += kib("Anonymous")
			if strings.HasSuffix(head, program) {
				files++
				if size, resident := kib("Size"), kib("Rss"); size != resident {
					t.Errorf("%s: %d of %d KiB are in memory of %s", name, resident, size, head)
				}
			}
			if flags := m[strings.Index(m, "VmFlags:"):]; kib("Rss") > 0 && !strings.Contains(flags, " lo") && !strings.Contains(head, "[v") {
				t.Errorf("%s: not locked: %s", name, head)
			}
		}
		if files < 2 {
			t.Errorf("%s: %d mappings of the program", name, files)
		}
		if anonymous > mostAnonymous {
			t.Errorf("%s: %d KiB besides the program", name, anonymous)
		}
	}
	if got := programMappings("1000-3000 r-xp 00000000 fe:00 12  /x\n3000-4000 ---p 00002000 fe:00 12 /x\n5000-6000 rw-p 00000000 00:00 0 \n" +
		"6000-7000 rw-p 00003000 fe:00 12   /x\n8000-9000 r--p 00000000 fe:00 13   /y\n"); len(got) != 2 || got[0] != (mapping{0x1000, 0x3000}) || got[1] != (mapping{0x6000, 0x7000}) {
		t.Errorf("%x", got)
	}
}
