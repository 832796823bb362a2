package pg

// UpgradeCheck is what a member found when it tried whether its data can become those of a later
// major version (design 5.31).
type UpgradeCheck struct {
	From int `json:"from"`
	To   int `json:"to"`
	// Problems stand in the way. Warnings do not: they say what would be different afterwards.
	Problems []string `json:"problems,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
}
