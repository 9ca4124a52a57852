defmodule Mix.Tasks.Barytherium.Tail do
  @shortdoc "Shows the messages of a STOMP broker"
  @moduledoc Barytherium.Tail.CommandLine.documentation(
               "mix barytherium.tail",
               Barytherium.Tail.Help
             )
  use Mix.Task

  @impl true
  def run(argv) do
    # The project's own application is not started: its consumers would take messages.
    Mix.Task.run("app.config")
    {:ok, _started} = Application.ensure_all_started(:barytherium)
    status = Barytherium.Tail.run(argv, "mix barytherium.tail")
    if status != 0, do: exit({:shutdown, status})
  end
end
