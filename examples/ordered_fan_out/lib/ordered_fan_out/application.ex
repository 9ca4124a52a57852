defmodule OrderedFanOut.Application do
  @moduledoc false
  use Application

  @impl true
  def start(_type, _args) do
    children = [
      {Task.Supervisor, name: OrderedFanOut.Workers},
      {OrderedFanOut.Orders, Application.fetch_env!(:ordered_fan_out, :broker)}
    ]

    # The consumer waits for its workers, so it does not outlive their supervisor.
    Supervisor.start_link(children, strategy: :rest_for_one)
  end
end
