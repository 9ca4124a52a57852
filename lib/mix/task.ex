defmodule Barytherium.MixTask do
  @moduledoc false
  # What the Mix tasks of the command-line programs have in common.

  @doc "Runs a program as the task `name`, which ends with its exit status."
  @spec run(module(), [String.t()], String.t()) :: nil
  def run(program, argv, name) do
    # The project's own application is not started: its consumers would take messages.
    Mix.Task.run("app.config")
    {:ok, _started} = Application.ensure_all_started(:barytherium)
    status = program.run(argv, name)
    if status != 0, do: exit({:shutdown, status})
  end
end
