defmodule Mix.Tasks.Barytherium.Bench do
  @shortdoc "Measures a STOMP broker"
  @moduledoc Barytherium.Tail.CommandLine.documentation(
               "mix barytherium.bench",
               Barytherium.Bench.Help
             )
  use Mix.Task

  @impl true
  def run(argv) do
    # The project's own application is not started.
    Mix.Task.run("app.config")
    {:ok, _started} = Application.ensure_all_started(:barytherium)
    status = Barytherium.Bench.run(argv, "mix barytherium.bench")
    if status != 0, do: exit({:shutdown, status})
  end
end
