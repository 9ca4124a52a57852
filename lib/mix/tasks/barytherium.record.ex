defmodule Mix.Tasks.Barytherium.Record do
  @shortdoc "Records the messages of a STOMP broker"
  @moduledoc Barytherium.Tail.CommandLine.documentation(
               "mix barytherium.record",
               Barytherium.Record.Help
             )
  use Mix.Task

  @impl true
  def run(argv) do
    # The project's own application is not started.
    Mix.Task.run("app.config")
    {:ok, _started} = Application.ensure_all_started(:barytherium)
    status = Barytherium.Record.run(argv, "mix barytherium.record")
    if status != 0, do: exit({:shutdown, status})
  end
end
