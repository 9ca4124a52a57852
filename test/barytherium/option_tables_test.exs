defmodule Barytherium.OptionTablesTest do
  @moduledoc "The tables of options in the guides are those that the schemas make."
  use ExUnit.Case, async: true

  alias Barytherium.{Client, Consumer, Network, Schema}

  @tables [
    {"guides/options.md", "consumers", Consumer.Options.schema()},
    {"guides/options.md", "subscriptions", Consumer.Options.subscription_schema()},
    {"guides/options.md", "subscribe/3", Client.Options.subscribing_schema()},
    {"guides/options.md", "clients", Client.Options.schema()},
    {"guides/network.md", "connections", Network.Options.schema()}
  ]

  # `UPDATE_GUIDES=1 mix test` updates them.
  for {file, name, schema} <- @tables do
    @file_name file
    @name name
    @table Schema.table(schema)

    test "#{name} in #{file}" do
      [before, rest] = @file_name |> File.read!() |> String.split("<!-- #{@name} -->\n")
      [table, rest] = String.split(rest, "<!-- end of #{@name} -->", parts: 2)

      if System.get_env("UPDATE_GUIDES") do
        parts = [before, "<!-- #{@name} -->\n", @table, "<!-- end of #{@name} -->", rest]
        File.write!(@file_name, parts)
      else
        assert table == @table
      end
    end
  end
end
