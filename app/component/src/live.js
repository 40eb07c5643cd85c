// A region that is being segmented: its tiles are shown as they are finished.

export class Live {
  constructor(workspace) {
    this.workspace = workspace;
    this.task = null;
  }

  update({ layer, other }) {
    const task = [layer, other].find((l) => l?.running)?.id ?? null;
    if (task === this.task) return;
    this.stop();
    this.task = task;
    this.since = 0;
    if (task) this.poll(task);
  }

  stop() {
    clearTimeout(this.timer);
    this.task = null;
  }

  async poll(task) {
    const { workspace } = this;
    const pass = workspace.data.pass ? `&pass=${workspace.data.pass}` : "";
    try {
      const answer = await fetch(`/veca/task/${task}?since=${this.since}${pass}`);
      if (this.task !== task) return;
      if (answer.status === 404) {
        // The server was started again and knows nothing of it.
        this.task = null;
        workspace.readout.progress({ state: "lost" });
        workspace.tell("ended", task);
        return;
      }
      const state = await answer.json();
      const mask = workspace.layers.masks.get(task);
      for (const cell of state.cells) mask?.refresh(cell);
      this.since = state.count;
      workspace.readout.progress(state);
      if (["finished", "stopped", "failed"].includes(state.state)) {
        this.task = null;
        workspace.tell("ended", task);
        return;
      }
    } catch {
      // The server is busy or gone; the page itself says so when it is.
    }
    if (this.task === task) this.timer = setTimeout(() => this.poll(task), 150);
  }
}
