defmodule DarwinFeed.Application do
  @moduledoc false
  use Application

  @impl true
  def start(_type, _args) do
    broker = Application.fetch_env!(:darwin_feed, :broker)
    Supervisor.start_link([{DarwinFeed.PushPort, broker}], strategy: :one_for_one)
  end
end
