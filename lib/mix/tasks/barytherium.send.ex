defmodule Mix.Tasks.Barytherium.Send do
  @shortdoc "Sends messages to a STOMP broker"
  @moduledoc Barytherium.Tail.CommandLine.documentation(
               "mix barytherium.send",
               Barytherium.Send.Help
             )
  use Mix.Task

  @impl true
  def run(argv) do
    # The project's own application is not started.
    Mix.Task.run("app.config")
    {:ok, _started} = Application.ensure_all_started(:barytherium)
    status = Barytherium.Send.run(argv, "mix barytherium.send")
    if status != 0, do: exit({:shutdown, status})
  end
end
