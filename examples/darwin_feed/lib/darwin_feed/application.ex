defmodule DarwinFeed.Application do
  @moduledoc false
  use Application

  alias DarwinFeed.{PushPort, Report}

  @impl true
  def start(_type, _args) do
    broker = Application.fetch_env!(:darwin_feed, :broker)
    children = [{PushPort, [name: PushPort] ++ broker}, {Report, PushPort}]
    Supervisor.start_link(children, strategy: :rest_for_one)
  end
end
