defmodule Publisher.Application do
  @moduledoc false
  use Application

  @impl true
  def start(_type, _args) do
    broker = Application.fetch_env!(:publisher, :broker)
    client = {Barytherium.Client, [name: Publisher.Client] ++ broker}
    Supervisor.start_link([client], strategy: :one_for_one)
  end
end
