/** Work that is torn down in the order opposite to that in which it was set up. */
export class Scope {
  readonly #tasks: (() => unknown)[] = []
  teardown(task: () => unknown): void {
    this.#tasks.push(task)
  }
  async end(): Promise<void> {
    for (const task of this.#tasks.reverse()) await task()
  }
}
