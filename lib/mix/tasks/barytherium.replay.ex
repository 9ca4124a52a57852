defmodule Mix.Tasks.Barytherium.Replay do
  @shortdoc "Plays a recording as a STOMP broker"
  @moduledoc Barytherium.Tail.CommandLine.documentation(
               "mix barytherium.replay",
               Barytherium.Replay.Help
             )
  use Mix.Task

  @impl true
  def run(argv) do
    # The project's own application is not started.
    Mix.Task.run("app.config")
    {:ok, _started} = Application.ensure_all_started(:barytherium)
    status = Barytherium.Replay.run(argv, "mix barytherium.replay")
    if status != 0, do: exit({:shutdown, status})
  end
end
